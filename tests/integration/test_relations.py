"""What there is to ask about: every relation with its columns, as the store, a connection, the sandbox and the page have it."""

from __future__ import annotations

import re
from pathlib import Path

from tests.servers import RedisServer
from tests.serving import event, served, settings_for
from thermocline.archiver.worker import Worker
from thermocline.config import load
from thermocline.event import COLUMN_NAMES

REWARDS = {
    "sql": 'SELECT hour, metadata->>\'$."<reward>"\' AS "<b>reward", count(*) AS runs FROM events GROUP BY ALL',
    "merge": {"runs": "sum"},
}


def test_every_relation_is_listed_with_the_columns_and_types_it_has(tmp_path: Path, server: RedisServer) -> None:
    settings = settings_for(server.url, tmp_path / "data")
    rollups = load({"rollups": {"rewards": REWARDS}}, environ={}).rollups
    with served(settings.model_copy(update={"rollups": rollups})) as running, running.client() as client:
        store = running.service.store
        empty = store.relations()
        client.post("/v1/events", json=[event("a"), event("b", "error")]).raise_for_status()
        Worker(store.tiers).once()
        found = store.relations()
        assert found == empty
        assert [name for name, _ in found["events"]] == list(COLUMN_NAMES)
        with store.duckdb() as con:
            there = con.execute("SELECT view_name FROM duckdb_views() WHERE NOT internal").fetchall()
            assert {name for (name,) in there} == set(found)
            for name, columns in found.items():
                described = con.execute(f"DESCRIBE SELECT * FROM {name}").fetchall()
                assert tuple((row[0], row[1]) for row in described) == columns, name
        for name, columns in found.items():
            answer = client.post("/v1/query", json={"sql": f"SELECT * FROM {name} LIMIT 0"}).raise_for_status().json()
            assert [one["name"] for one in answer["columns"]] == [name for name, _ in columns], name
        page = client.get("/sql").text
        listed = re.findall(r"<dt><a href=\"([^\"]+)\">([a-z_]+)</a></dt>\s*<dd>(.*?)</dd>", page)
        assert {name: len(re.findall("<code>", columns)) for _, name, columns in listed} == {
            name: len(columns) for name, columns in found.items()
        }
        assert "<b>reward" not in page
        for address, name, _ in listed:
            assert f"FROM {name} LIMIT 20</textarea>" in client.get(address).text
