"""The page asks for a token: a form that puts it into a cookie no script can read and no other site can send."""

from __future__ import annotations

from urllib.parse import parse_qs, urlsplit

from starlette.requests import Request
from starlette.responses import RedirectResponse, Response

from .access import COOKIE, require
from .bodies import body_of
from .page_view import HEADERS, html, is_part, link, problem_page
from .problems import Problem
from .service import Service

FORM: str = "application/x-www-form-urlencoded"
FIELDS_MAX = 20


async def form_of(request: Request) -> dict[str, str]:
    """The fields of a form, each once. Problem 415, 400, or as body_of."""
    service: Service = request.app.state.service
    if request.headers.get("content-type", "").partition(";")[0].strip().lower() != FORM:
        raise Problem(415, "unsupported-media-type", f"send the form as {FORM}")
    async with body_of(request, service) as body:
        try:
            found = parse_qs(body.decode(), keep_blank_values=True, max_num_fields=FIELDS_MAX, errors="strict")
        except (UnicodeDecodeError, ValueError) as exc:
            raise Problem(400, "bad-request", f"the form cannot be read: {exc}") from exc
    return {name: values[0] for name, values in found.items()}


async def login(request: Request) -> Response:
    """The form; after it a cookie, and on to where the caller was going."""
    service: Service = request.app.state.service
    target = local(request.query_params.get("next", "/"))
    if request.method != "POST":
        return html(request, "login.html", target=target, problem=None)
    given = (await form_of(request)).get("token", "").strip()
    try:
        if not given and service.access.required:
            raise Problem(401, "not-authenticated", "no token was given: `thermocline tokens create NAME --scope query`")
        address = request.client.host if request.client else ""
        caller = await service.access.caller({"authorization": f"Bearer {given}"}, {}, address)
        require(caller, "query")
    except Problem as problem:
        return html(request, "login.html", code=problem.status, target=target, problem=problem.document())
    answer = RedirectResponse(target, 303, headers=HEADERS)
    if service.access.required:
        secure = request.url.scheme == "https"
        answer.set_cookie(COOKIE, given, httponly=True, samesite="strict", secure=secure, path="/")
    return answer


async def logout(request: Request) -> Response:
    """The cookie is forgotten."""
    answer = RedirectResponse("/login", 303, headers=HEADERS)
    answer.delete_cookie(COOKIE, httponly=True, samesite="strict", path="/")
    return answer


def refused(request: Request, problem: Problem) -> Response:
    """The answer to somebody who may not see the page: the form, when a token helps."""
    if problem.status not in (401, 403) or problem.kind == "cross-site":
        return problem_page(request, problem)
    target = request.url.path + (f"?{request.url.query}" if request.url.query else "")
    address = link("/login", next=target if request.method == "GET" and not is_part(request) else "/")
    if is_part(request):
        return Response(status_code=problem.status, headers={**HEADERS, "HX-Redirect": address})
    return RedirectResponse(address, 303, headers=HEADERS)


def local(target: str) -> str:
    """An address of this server; / when it is another's."""
    try:
        parts = urlsplit(target)
    except ValueError:
        return "/"
    plain = target.isprintable() and "\\" not in target
    fits = plain and not parts.scheme and not parts.netloc and target.startswith("/") and not target.startswith("//")
    return target if fits else "/"
