"""What the compiler must be told of a GPU that is not there: `target_config` of its topology.

A GPU's program depends on its streaming multiprocessors, registers and shared memory, which the
driver tells where there is one. The figures are the vendor's: CUDA C++ Programming Guide, table
"Technical Specifications per Compute Capability" (8.0 and 9.0), and the data sheets of `chips.py`
for cores, clocks, caches and memory. The fields are those of XLA's GpuTargetConfigProto
(xla/stream_executor/device_description.proto).
"""

from __future__ import annotations

import dataclasses

from flamingo_jax.planning.chips import Chip

KIB = 2**10


@dataclasses.dataclass(frozen=True)
class Processor:
    """A GPU as the compiler sees it.

    Attributes:
      capability: major version of the CUDA compute capability.
      lanes: f32 units of a multiprocessor.
      shared: bytes of shared memory of a multiprocessor.
      block_shared: bytes of it that a block may ask for.
      cache: bytes of the second-level cache.
      clock: GHz.
    """

    capability: int
    lanes: int
    shared: int
    block_shared: int
    cache: int
    clock: float


PROCESSORS = {
    "h100": Processor(9, 128, 228 * KIB, 227 * KIB, 50 * KIB**2, 1.98),
    "a100": Processor(8, 64, 164 * KIB, 163 * KIB, 40 * KIB**2, 1.41),
}
"""By the kind of chip."""


def target_config(chip: Chip) -> str:
    """The text of a GpuTargetConfigProto.

    Raises:
      KeyError: for a chip that is not among `PROCESSORS`.
    """
    gpu = PROCESSORS[chip.kind]
    return f"""
gpu_device_info {{
  threads_per_block_limit: 1024
  threads_per_warp: 32
  shared_memory_per_block: {48 * KIB}
  shared_memory_per_core: {gpu.shared}
  shared_memory_per_block_optin: {gpu.block_shared}
  threads_per_core_limit: 2048
  core_count: {chip.cores}
  fpus_per_core: {gpu.lanes}
  block_dim_limit_x: {2**31 - 1}
  block_dim_limit_y: {2**16 - 1}
  block_dim_limit_z: {2**16 - 1}
  thread_dim_limit_x: 1024
  thread_dim_limit_y: 1024
  thread_dim_limit_z: 64
  registers_per_core_limit: {2**16}
  registers_per_block_limit: {2**16}
  memory_bandwidth: {int(chip.hbm_rate)}
  l2_cache_size: {gpu.cache}
  clock_rate_ghz: {gpu.clock}
  device_memory_size: {chip.hbm}
  cuda_compute_capability {{ major: {gpu.capability} }}
}}
platform_name: "CUDA"
runtime_version {{ major: 12 minor: 8 patch: 0 }}
dnn_version_info {{ major: 9 minor: 8 patch: 0 }}
device_description_str: "{chip.names[0]}"
"""
