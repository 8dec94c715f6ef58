"""`fleetbox image`: the family of image verbs."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Annotated

import typer

import fleetbox
from fleetbox.sizes import format_size
from fleetbox_cli.progress import progress
from fleetbox_cli.render import Output, Table, age, fields
from fleetbox_cli.settings import Settings
from fleetbox_cli.verb import Entry, LazyGroup, verb

if TYPE_CHECKING:
    from fleetbox.image import Image

ImageRef = Annotated[str, typer.Argument(metavar="IMAGE", show_default=False, help="Alias, name or digest.")]
Name = Annotated[str, typer.Option("--name", metavar="NAME", show_default=False, help="Name the image.")]
Sha256 = Annotated[
    str, typer.Option("--sha256", metavar="HEX", show_default=False, help="Refuse anything but this digest.")
]


def _output(image: Image, done: str) -> Output:
    names = f" ({', '.join(image.names)})" if image.names else ""
    size = format_size(image.size_bytes)
    return Output("image", image, [f"{done} {image.digest[:12]}{names}, {size}, {image.boot} boot"])


@verb("""
    fleetbox image pull debian-12
    fleetbox image pull https://example.org/disk.qcow2 --sha256 HEX
""")
def pull(
    settings: Settings,
    image: Annotated[str, typer.Argument(metavar="IMAGE", show_default=False, help="Alias or URL.")],
    sha256: Sha256 = "",
) -> Output:
    """Fetch an image. A broken download is resumed, its digest verified."""
    with progress(settings) as on_event:
        return _output(fleetbox.images.pull(image, sha256=sha256, on_event=on_event), "pulled")


@verb("""
    fleetbox image build
    fleetbox image build --name web --include nginx --run ./setup.sh
""")
def build(
    settings: Settings,
    release: Annotated[str, typer.Argument(metavar="RELEASE", help="What to build.")] = "debian-12",
    name: Name = "",
    include: Annotated[
        list[str] | None, typer.Option("--include", metavar="PACKAGE", help="Install this package, too. Repeatable.")
    ] = None,
    script: Annotated[
        list[str] | None, typer.Option("--run", metavar="SCRIPT", help="Run this script in the image. Repeatable.")
    ] = None,
) -> Output:
    """Build an image from the distribution's signed archive, with packages and scripts of your own."""
    with progress(settings) as on_event:
        made = fleetbox.images.build(
            release, name=name, include=tuple(include or ()), scripts=tuple(script or ()), on_event=on_event
        )
    return _output(made, "built")


@verb(
    """
    fleetbox image import ./disk.qcow2 --name mine
    curl -fL URL | fleetbox image import - --name mine
    """,
    name="import",
)
def import_(
    settings: Settings,
    source: Annotated[
        str, typer.Argument(metavar="FILE", show_default=False, help="Raw or qcow2 file, URL, or - for standard input.")
    ],
    name: Name = "",
    sha256: Sha256 = "",
) -> Output:
    """Take in a disk image: a raw or qcow2 file, a URL, or standard input."""
    with progress(settings) as on_event:
        return _output(fleetbox.images.import_(source, name=name, sha256=sha256, on_event=on_event), "imported")


@verb("""
    fleetbox image ls
    fleetbox image ls --json
""")
def ls(settings: Settings) -> Output:
    """List the images that are here."""
    images = fleetbox.images.list_images()
    now = time.time()
    rows = tuple(
        (
            ", ".join(i.names),
            i.digest[:12],
            format_size(i.size_bytes),
            format_size(i.stored_bytes),
            i.boot,
            age(now - i.created_at),
        )
        for i in images
    )
    text: list[str | Table] = [Table(("NAMES", "DIGEST", "SIZE", "STORED", "BOOT", "AGE"), rows)] if rows else []
    if not rows and not settings.quiet:
        text = ["no images; `fleetbox image pull debian-12` fetches one, `fleetbox up` does so by itself"]
    return Output("images", {"images": images}, text)


@verb("""
    fleetbox image inspect debian-12
""")
def inspect(settings: Settings, image: ImageRef) -> Output:
    """Show an image in detail."""
    found = fleetbox.images.inspect(image)
    shown = [
        ("digest", found.digest),
        ("names", ", ".join(found.names)),
        ("source", found.source),
        ("size", f"{format_size(found.size_bytes)}, {format_size(found.stored_bytes)} stored"),
        ("boot", f"{found.boot} ({found.boot_reason})" if found.boot_reason else found.boot),
        ("kernel", found.kernel),
        ("initrd", found.initrd),
        ("root", found.root),
        ("disk", found.disk),
    ]
    return Output("image", found, [fields(shown)])


@verb("""
    fleetbox image rm mine
""")
def rm(
    settings: Settings,
    images: Annotated[list[str], typer.Argument(metavar="IMAGE...", show_default=False, help="Names or digests.")],
) -> Output:
    """Remove images that no member uses."""
    removed = fleetbox.images.remove(images)
    text = [] if settings.quiet else [f"removed {', '.join(i.names) or i.digest[:12]}" for i in removed]
    return Output("images", {"images": removed}, text)


_SELF = "fleetbox_cli.verbs.image:"
image = LazyGroup(
    "image",
    "Get, build, list and remove images.",
    {
        "pull": Entry(_SELF + "pull", "Fetch an image."),
        "build": Entry(_SELF + "build", "Build an image from the distribution's archive."),
        "import": Entry(_SELF + "import_", "Take in a disk image."),
        "ls": Entry(_SELF + "ls", "List the images that are here."),
        "inspect": Entry(_SELF + "inspect", "Show an image in detail."),
        "rm": Entry(_SELF + "rm", "Remove images that no member uses."),
    },
)
