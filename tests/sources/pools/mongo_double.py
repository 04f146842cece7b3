"""Enough of MongoDB's wire protocol for a driver's pool: the handshake, pings, and slow finds.

There is no MongoDB server to install beside the others. What the driver does is real: its pool, its
monitors, its events; only the answers are made up. A query's filter says how long its one document
takes: ``find_one({"delay_s": 0.05})``.

``python -m tests.sources.pools.mongo_double <port>`` serves on loopback until terminated.
https://www.mongodb.com/docs/manual/reference/mongodb-wire-protocol/
"""

from __future__ import annotations

import asyncio
import struct
import sys
from typing import Any, Final

import bson

Document = dict[str, Any]

OP_REPLY: Final = 1
OP_QUERY: Final = 2004
OP_MSG: Final = 2013

_HEADER: Final = struct.Struct("<iiii")  # length with header, request, answered request, opcode
_REPLY: Final = struct.Struct("<iqii")  # flags, cursor, first document, number of documents
_MORE_TO_COME: Final = 1 << 1
_NO_SUCH_COMMAND: Final = 59

# No topologyVersion: with one, monitors would expect a stream of answers to a single hello.
_HELLO: Final = {
    "helloOk": True,
    "ismaster": True,
    "isWritablePrimary": True,
    "maxBsonObjectSize": 16 << 20,
    "maxMessageSizeBytes": 48_000_000,
    "maxWriteBatchSize": 100_000,
    "minWireVersion": 0,
    "maxWireVersion": 21,  # MongoDB 7.0
    "logicalSessionTimeoutMinutes": 30,
    "ok": 1.0,
}


async def answer(command: Document) -> Document:
    """What the server says to a command, which its first key names."""
    name = next(iter(command))
    match name.lower():
        case "hello" | "ismaster":
            return dict(_HELLO)
        case "ping" | "endsessions":
            return {"ok": 1.0}
        case "find":
            await asyncio.sleep(command.get("filter", {}).get("delay_s", 0.0))
            of = f"{command['$db']}.{command['find']}"
            return {
                "cursor": {"id": bson.Int64(0), "ns": of, "firstBatch": [{"_id": 1}]},
                "ok": 1.0,
            }
        case _:
            return {"ok": 0.0, "errmsg": f"no such command: {name}", "code": _NO_SUCH_COMMAND}


async def reply(opcode: int, payload: bytes) -> tuple[int, bytes] | None:
    """The opcode and payload of the answer to a message; ``None`` where none is wanted."""
    if opcode == OP_QUERY:  # how a driver says hello to a server it knows nothing about
        after_name = payload.index(b"\0", 4) + 1
        document = bson.encode(await answer(bson.decode(payload[after_name + 8 :])))
        return OP_REPLY, _REPLY.pack(0, 0, 0, 1) + document
    assert opcode == OP_MSG, f"a driver sent opcode {opcode}"
    (flags,) = struct.unpack_from("<I", payload)
    (size,) = struct.unpack_from("<i", payload, 5)  # after the flags and the kind of section
    document = bson.encode(await answer(bson.decode(payload[5 : 5 + size])))
    return None if flags & _MORE_TO_COME else (OP_MSG, struct.pack("<IB", 0, 0) + document)


async def converse(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """Answer one connection's messages in turn until it is closed."""
    try:
        while True:
            header = await reader.readexactly(_HEADER.size)
            length, request, _, opcode = _HEADER.unpack(header)
            replied = await reply(opcode, await reader.readexactly(length - _HEADER.size))
            if replied is not None:
                opcode, payload = replied
                writer.write(
                    _HEADER.pack(_HEADER.size + len(payload), 0, request, opcode) + payload
                )
                await writer.drain()
    except (asyncio.IncompleteReadError, ConnectionError):
        pass
    finally:
        writer.close()


async def main(port: int) -> None:
    server = await asyncio.start_server(converse, "127.0.0.1", port)
    await server.serve_forever()


if __name__ == "__main__":
    asyncio.run(main(int(sys.argv[1])))
