"""The chips that a plan can be made for: peaks as published, never measured here.

Sources, by the key used in `Chip.source`:

- `cloud`: the vendor's page of each TPU, https://docs.cloud.google.com/tpu/docs/v4 (v5e, v5p, v6e,
  tpu7x); memory in GiB as in the comparison on the page of tpu7x.
- `book`: Austin et al. 2025, How to Scale Your Model, https://jax-ml.github.io/scaling-book/tpus:
  bytes/s of a link one way, of the data-centre network by chip, and of PCIe to a chip of v4 and
  v5e; for v6e it has but an exercise's assumption, for the others nothing: they are left unknown.
- `h100`, `a100`: the vendor's data sheets, https://www.nvidia.com/en-us/data-center/h100 (SXM5) and
  https://www.nvidia.com/en-us/data-center/a100 (80 GB, SXM4), whose PCIe is of both ways, here of
  one; `dgx`: the user guides of the vendor's own nodes of eight, one network card a GPU: 400 Gb/s
  (DGX H100), 200 Gb/s (DGX A100).
- `compiler`: the "available HBM" in the message of libtpu 0.0.52 for a program that does not fit,
  to two decimals of a GiB. Of v5p that is more than the vendor's 95 GiB.
- `clocks`: the clocks that `estimated_cycles` of libtpu 0.0.52 are divided by. They are not on the
  vendor's pages; the share of the peak that a large product then reaches is 0.86 to 0.97.

Where sources differ: for a link the vendor's pages imply 50 (v4, v5e) or 100 GB/s (v5p, v6e,
tpu7x) one way, the book says 45 and 90, which are taken; for v5p's memory the vendor has both
2765 GB/s and 2575 GiB/s, which are the same; for v5e's 800 GiB/s and 819 GB/s, the latter is taken;
for v6e's 1600, 1638 and 1640 GB/s, 1638 is taken; peaks of GPUs are those without sparsity.
"""

from __future__ import annotations

import dataclasses

GIB = 2**30


@dataclasses.dataclass(frozen=True)
class Chip:
    """One chip.

    Attributes:
      kind: its name in a topology.
      title: its name in print.
      peak: FLOP/s of bf16 products.
      hbm: bytes of memory as the vendor says.
      usable: bytes of memory that the compiler lets a program have, of all its devices together;
        None = unknown.
      hbm_rate: bytes/s of memory.
      links: links to neighbours, or to the switch of a node of GPUs.
      link_rate: bytes/s of a link, one way.
      torus: dims of the torus; 0 = a node's GPUs behind a switch.
      cores: compute cores.
      devices: how many devices JAX shows for it.
      host: chips of a host: a process of JAX.
      network_rate: bytes/s of a chip's share of its host's network, one way, between slices or
        nodes.
      host_rate: bytes/s from its host's memory to a chip (PCIe, one way); None = not published.
      clock: Hz that compiled programs' cycles are counted in; None = unknown.
      names: `device_kind`s under which JAX shows it.
      source: where the figures are from; see the module's docstring.
    """

    kind: str
    title: str
    peak: float
    hbm: int
    usable: int | None
    hbm_rate: float
    links: int
    link_rate: float
    torus: int
    cores: int
    devices: int
    host: int
    network_rate: float
    host_rate: float | None
    clock: float | None
    names: tuple[str, ...]
    source: str

    @property
    def memory(self) -> int:
        """Bytes that a program may take on one of the chip's devices, as far as is known."""
        return (self.usable or self.hbm) // self.devices

    @property
    def platform(self) -> str:
        """JAX's name of what compiles for it."""
        return "tpu" if self.torus else "cuda"


_TPU = "cloud; links and network: book; usable: compiler; clock: clocks"

CHIPS: dict[str, Chip] = {
    chip.kind: chip
    for chip in (
        Chip(
            kind="v4", title="TPU v4", peak=275e12, hbm=32 * GIB, usable=int(30.75 * GIB),
            hbm_rate=1200e9, links=6, link_rate=45e9, torus=3, cores=2, devices=1, host=4,
            network_rate=6.25e9, host_rate=16e9, clock=1.05e9, names=("TPU v4",),
            source=_TPU,
        ),
        Chip(
            kind="v5e", title="TPU v5e", peak=197e12, hbm=16 * GIB, usable=int(15.75 * GIB),
            hbm_rate=819e9, links=4, link_rate=45e9, torus=2, cores=1, devices=1, host=4,
            network_rate=3.125e9, host_rate=16e9, clock=1.5e9, names=("TPU v5 lite", "TPU v5e"),
            source=_TPU,
        ),
        Chip(
            kind="v5p", title="TPU v5p", peak=459e12, hbm=95 * GIB, usable=int(95.73 * GIB),
            hbm_rate=2765e9, links=6, link_rate=90e9, torus=3, cores=2, devices=1, host=4,
            network_rate=6.25e9, host_rate=None, clock=1.75e9, names=("TPU v5", "TPU v5p"),
            source=_TPU,
        ),
        Chip(
            kind="v6e", title="TPU v6e", peak=918e12, hbm=32 * GIB, usable=int(31.24 * GIB),
            hbm_rate=1638e9, links=4, link_rate=90e9, torus=2, cores=1, devices=1, host=4,
            network_rate=12.5e9, host_rate=None, clock=1.75e9, names=("TPU v6 lite", "TPU v6e"),
            source=_TPU,
        ),
        Chip(
            kind="tpu7x", title="TPU7x", peak=2307e12, hbm=192 * GIB, usable=2 * int(94.74 * GIB),
            hbm_rate=7380e9, links=6, link_rate=90e9, torus=3, cores=2, devices=2, host=4,
            network_rate=12.5e9, host_rate=None, clock=None, names=("TPU7x",),
            source="cloud; links and network: book; usable: compiler",
        ),
        Chip(
            kind="h100", title="H100 SXM 80GB", peak=989.4e12, hbm=80 * 10**9, usable=None,
            hbm_rate=3350e9, links=18, link_rate=25e9, torus=0, cores=132, devices=1, host=8,
            network_rate=50e9, host_rate=64e9, clock=None, names=("NVIDIA H100 80GB HBM3",),
            source="h100; network: dgx",
        ),
        Chip(
            kind="a100", title="A100 SXM 80GB", peak=312e12, hbm=80 * 10**9, usable=None,
            hbm_rate=2039e9, links=12, link_rate=25e9, torus=0, cores=108, devices=1, host=8,
            network_rate=25e9, host_rate=32e9, clock=None, names=("NVIDIA A100-SXM4-80GB",),
            source="a100; network: dgx",
        ),
    )
}  # fmt: skip
"""By kind. Hosts: TPU slices of several hosts have 4 chips a host (v5e and v6e too, whose boards of
8 are then two); GPUs are taken as nodes of eight with a network card each."""


def peak_flops(device_kind: str, devices: int) -> float:
    """FLOP/s of bf16 products of so many devices of a kind; 0 for CPUs and chips not listed."""
    chip = of_device(device_kind)
    return 0.0 if chip is None else chip.peak / chip.devices * devices


def of_device(device_kind: str) -> Chip | None:
    """The chip that JAX shows under this `device_kind`; None for CPUs and chips not listed."""
    for chip in CHIPS.values():
        if device_kind in chip.names:
            return chip
    return None
