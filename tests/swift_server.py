"""OpenStack Swift with its S3 interface, in one process: `python swift_server.py FOLDER ACCESS_KEY SECRET_KEY`.

Run by the Python that has Swift installed (tests/swift.lock), not by that of the tests. It prints the port once it listens on
127.0.0.1 and serves until it ends by a signal. FOLDER must lie on a file system with user attributes (ext4, xfs; tmpfs from
Linux 6.6 on). The access key is account:user.
"""

import sys
from pathlib import Path

import eventlet

eventlet.monkey_patch()

from eventlet import wsgi  # noqa: E402
from swift.common import storage_policy, utils  # noqa: E402
from swift.common.http_protocol import SwiftHttpProtocol  # noqa: E402
from swift.common.ring import RingBuilder  # noqa: E402
from swift.common.wsgi import loadapp  # noqa: E402

KINDS = ("account", "container", "object")
SWIFT = """
[swift-hash]
swift_hash_path_suffix = thermocline
swift_hash_path_prefix = tests
[storage-policy:0]
name = one
default = yes
"""
STORE = """
[DEFAULT]
swift_dir = {folder}
devices = {folder}/disk
mount_check = false
disable_fallocate = true
fallocate_reserve = 0
log_level = ERROR
[pipeline:main]
pipeline = {kind}-server
[app:{kind}-server]
use = egg:swift#{kind}
"""
PROXY = """
[DEFAULT]
swift_dir = {folder}
log_level = ERROR
[pipeline:main]
pipeline = catch_errors gatekeeper listing_formats s3api tempauth copy slo dlo versioned_writes symlink proxy-server
[app:proxy-server]
use = egg:swift#proxy
allow_account_management = true
account_autocreate = true
request_node_count = 1
[filter:catch_errors]
use = egg:swift#catch_errors
[filter:gatekeeper]
use = egg:swift#gatekeeper
[filter:listing_formats]
use = egg:swift#listing_formats
[filter:s3api]
use = egg:swift#s3api
location = us-east-1
[filter:tempauth]
use = egg:swift#tempauth
user_{account}_{user} = {secret_key} .admin
[filter:copy]
use = egg:swift#copy
[filter:slo]
use = egg:swift#slo
rate_limit_after_segment = 1000000
[filter:dlo]
use = egg:swift#dlo
[filter:versioned_writes]
use = egg:swift#versioned_writes
[filter:symlink]
use = egg:swift#symlink
"""


def main(folder: Path, access_key: str, secret_key: str) -> None:
    (folder / "disk" / "one").mkdir(parents=True)
    (folder / "swift.conf").write_text(SWIFT)
    utils.set_swift_dir(str(folder))
    storage_policy.reload_storage_policies()
    account, _, user = access_key.partition(":")
    sockets = [eventlet.listen(("127.0.0.1", 0)) for _ in range(4)]
    for kind, socket in zip(KINDS, sockets[1:], strict=True):
        write_ring(folder / f"{kind}.ring.gz", socket.getsockname()[1])
    for (name, text), socket in zip([("proxy", PROXY), *((kind, STORE) for kind in KINDS)], sockets, strict=True):
        conf = folder / f"{name}-server.conf"
        conf.write_text(text.format(folder=folder, kind=name, account=account, user=user, secret_key=secret_key))
        served = eventlet.spawn(serve, socket, loadapp(str(conf)))
    sys.stdout.write(f"{sockets[0].getsockname()[1]}\n")
    sys.stdout.flush()
    served.wait()


def write_ring(path: Path, port: int) -> None:
    """One device holds everything."""
    builder = RingBuilder(4, 1, 0)
    place = {"region": 1, "zone": 1, "ip": "127.0.0.1", "port": port, "device": "one", "weight": 1}
    builder.add_dev({**place, "replication_ip": "127.0.0.1", "replication_port": port})
    builder.rebalance()
    builder.get_ring().save(str(path))


def serve(socket: object, app: object) -> None:
    options = {"protocol": SwiftHttpProtocol, "capitalize_response_headers": False, "socket_timeout": 120}
    wsgi.server(socket, app, log_output=False, **options)


if __name__ == "__main__":
    main(Path(sys.argv[1]).resolve(), sys.argv[2], sys.argv[3])
