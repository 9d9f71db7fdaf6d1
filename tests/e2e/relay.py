"""Passes every byte on to another server of this machine, so that a test can start and stop an arm for nothing."""

from __future__ import annotations

import asyncio
import contextlib
import signal
import sys
import urllib.parse


async def pump(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """Copy until the end."""
    with contextlib.suppress(OSError):
        while data := await reader.read(1 << 16):
            writer.write(data)
            await writer.drain()
        if writer.can_write_eof():
            writer.write_eof()


async def main(port: int, url: str) -> None:
    """Serve until SIGTERM."""
    target = urllib.parse.urlsplit(url)

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(OSError):
            their_reader, their_writer = await asyncio.open_connection(target.hostname, target.port)
            await asyncio.gather(pump(reader, their_writer), pump(their_reader, writer))
            their_writer.close()
        writer.close()

    stop = asyncio.Event()
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, stop.set)
    async with await asyncio.start_server(serve, "127.0.0.1", port):
        await stop.wait()


if __name__ == "__main__":
    asyncio.run(main(int(sys.argv[1]), sys.argv[2]))
