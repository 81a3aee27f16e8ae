"""What QEMU answers, as far as we use it: docs/interop/qemu-qmp-ref of QEMU. It may be hostile."""

from typing import Any

from pydantic import BaseModel, ConfigDict, Field


class Answer(BaseModel):
    """A JSON object of QEMU's."""

    model_config = ConfigDict(strict=True, frozen=True)


class Version(Answer):
    """The three numbers of a version."""

    major: int
    minor: int
    micro: int


class Versions(Answer):
    """The answer to query-version."""

    qemu: Version


class Status(Answer):
    """The answer to query-status, such as "running"."""

    status: str


class Bitmap(Answer):
    """A dirty bitmap. One without a name is QEMU's own."""

    name: str = ""
    recording: bool = False
    inconsistent: bool = False


class Details(Answer):
    """What only some formats have."""

    data: dict[str, Any] = {}


class ImageInfo(Answer):
    """The image of a node; sizes are bytes."""

    virtual_size: int = Field(alias="virtual-size", ge=0)
    actual_size: int = Field(alias="actual-size", default=0, ge=0)
    format_specific: Details = Field(alias="format-specific", default=Details())


class Node(Answer):
    """A node, or what is inserted into a drive."""

    node_name: str = Field(alias="node-name", default="")
    drv: str
    ro: bool
    image: ImageInfo
    dirty_bitmaps: list[Bitmap] = Field(alias="dirty-bitmaps", default=[])


class GraphNode(Answer):
    """A node, or what uses one, in a Graph."""

    id: int
    name: str


class GraphEdge(Answer):
    """What has another node below it, by their ids; `name` says what for: "file", "backing"."""

    parent: int
    child: int
    name: str


class Graph(Answer):
    """All nodes, and which is below which."""

    nodes: list[GraphNode]
    edges: list[GraphEdge]


class Drive(Answer):
    """A drive or device of the guest."""

    device: str
    qdev: str = ""
    removable: bool
    inserted: Node | None = None


class Job(Answer):
    """A block job; `device` is its id."""

    device: str


class BackgroundJob(Answer):
    """A job of query-jobs. `status` is "concluded" at its end; `error` says why it failed."""

    id: str
    status: str
    current_progress: int = Field(alias="current-progress", ge=0)
    total_progress: int = Field(alias="total-progress")
    error: str = ""


class ImageHeader(Answer):
    """What qemu-img says of an image; `backing` is what it needs beside itself."""

    backing: str = Field(alias="backing-filename", default="")


class BlockExport(Answer):
    """An export of a node, by NBD for example."""

    id: str
    type: str
