"""`python -m fleetbox.holder.job`: one operation of the host, not of a cluster (see `fleetbox.job`).

One JSON request comes in on standard input, the events go out on standard output. SIGINT, or the end of standard input,
cancels the operation, which then undoes what it had not finished.
"""

from __future__ import annotations

import asyncio
import logging
import os
import signal
import sys
from typing import Any

import msgspec

from fleetbox.errors import NotFoundError
from fleetbox.holder.operations import Emit, Operation, Work


class Call(msgspec.Struct, frozen=True):
    """What is asked for: `image.pull` and its keywords."""

    operation: str
    request: dict[str, Any]


def _work(call: Call) -> Work:
    async def work(emit: Emit) -> Any:
        family, _, verb = call.operation.partition(".")
        if family == "image":
            return await _image(verb, call.request, emit)
        if family == "snapshot":
            from fleetbox.holder.snapshots import job

            return await job.run(verb, call.request, emit)
        if family == "template":
            return await _template(verb, call.request)
        if family == "doctor":
            from fleetbox.holder import doctor

            return await (doctor.fix(emit) if call.request["fix"] else doctor.examine())
        if family == "prune":
            from fleetbox.holder.collection.prune import prune

            return await prune(**call.request)
        raise NotFoundError(f"there is no operation {call.operation!r}")

    return work


async def _template(verb: str, request: dict[str, Any]) -> Any:
    from fleetbox.holder.warm.templates import TemplateStore
    from fleetbox.host import PruneReport

    store = TemplateStore()
    match verb:
        case "list":
            return await asyncio.to_thread(store.templates)
        case "remove":
            return await asyncio.to_thread(store.remove, **request)
        case "prune":
            return PruneReport(tuple(await asyncio.to_thread(store.prune, **request)))
    raise NotFoundError(f"there is no operation 'template.{verb}'")


async def _image(verb: str, request: dict[str, Any], emit: Emit) -> Any:
    from fleetbox.holder.images.library import ImageLibrary

    library = ImageLibrary()
    match verb:
        case "list":
            return library.list()
        case "inspect":
            return library.inspect(**request)
        case "remove":
            from fleetbox.holder.warm.templates import TemplateStore

            removed = library.remove(**request)
            for image in removed:
                TemplateStore().forget_image(image.digest)
            return removed
        case "pull":
            return await library.pull(**request, on_event=emit)
        case "build":
            return await library.build(**request, on_event=emit)
        case "import":
            return await library.import_(**request, on_event=emit)
    raise NotFoundError(f"there is no operation 'image.{verb}'")


async def _main() -> None:
    loop = asyncio.get_running_loop()
    asked = await asyncio.to_thread(sys.stdin.buffer.readline)
    if not asked.endswith(b"\n"):
        return  # the caller has gone before it had said what it wants
    call = msgspec.json.decode(asked, type=Call)
    operation = Operation(call.operation, _work(call))
    loop.add_signal_handler(signal.SIGINT, operation.cancel)
    loop.add_signal_handler(signal.SIGTERM, operation.cancel)

    def caller_gone() -> None:
        if not os.read(sys.stdin.fileno(), 4096):
            loop.remove_reader(sys.stdin.fileno())
            operation.cancel()

    loop.add_reader(sys.stdin.fileno(), caller_gone)
    async for line in operation.lines():
        try:
            os.write(sys.stdout.fileno(), line)
        except BrokenPipeError:
            operation.cancel()
    await asyncio.wait({operation.task})


if __name__ == "__main__":
    logging.basicConfig(level=os.environ.get("FLEETBOX_LOG", "ERROR").upper(), stream=sys.stderr)
    os.umask(0o077)
    asyncio.run(_main())
