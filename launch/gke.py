"""Trains on TPU slices of a GKE cluster: writes a JobSet, or the same through XPK.

  python launch/gke.py --name=flamingo --image=REGION-docker.pkg.dev/P/R/flamingo:1 \\
    --accelerator=tpu-v5p-slice --topology=4x4x4 --out=flamingo.json -- \\
    train --config=experiments/flamingo_9b.py --workdir=gs://BUCKET/runs/9b

writes flamingo.json (JSON is YAML) and prints the command that submits it; --submit runs it too.
With --xpk, --cluster, --project, --zone and --tpu-type it is `xpk workload create`, on a cluster
that `xpk cluster create` has made. The image is built from launch/Dockerfile.

Kubernetes does the rest: exit codes 2 (bad input) and 3 (does not fit) fail the JobSet; on all
others (143 too: stopped with everything saved) JobSet starts all pods again. The pods share no
disk: give a --workdir in a bucket.
"""

from __future__ import annotations

import argparse
import json
import math
import pathlib
import shlex
import subprocess
import sys
from collections.abc import Sequence
from typing import Any

FINAL = (2, 3)  # exit codes that a new start would not change (DESIGN.md §4.1)
# What XPK restarts on beside 42 and 127-255 (xpk workload create --help): all codes but 2 and 3.
XPK_RESTARTS = "1,4-126"
CONTAINER = "flamingo"
RESTART_ATTEMPT = "jobset.sigs.k8s.io/restart-attempt"  # set by JobSet on every pod it makes


def job_set(flags: argparse.Namespace) -> dict[str, Any]:
    """The JobSet: one Job a slice, one pod a host (API jobset.x-k8s.io/v1alpha2)."""
    hosts = math.prod(flags.topology) // flags.chips_per_host
    metadata: dict[str, Any] = {
        "name": flags.name,
        # A slice is a node pool of its own: no two Jobs of the set may share one.
        "annotations": {"alpha.jobset.sigs.k8s.io/exclusive-topology": flags.pool_label},
    }
    if flags.queue:
        metadata["labels"] = {"kueue.x-k8s.io/queue-name": flags.queue}
    job = {
        "completions": hosts,
        "parallelism": hosts,
        "backoffLimit": 0,  # a lost host costs the others their collectives: all start again
        "podFailurePolicy": {
            "rules": [
                {
                    "action": "FailJob",
                    "onExitCodes": {
                        "containerName": CONTAINER,
                        "operator": "In",
                        "values": list(FINAL),
                    },
                }
            ]
        },
        "template": {"spec": pod(flags)},
    }
    return {
        "apiVersion": "jobset.x-k8s.io/v1alpha2",
        "kind": "JobSet",
        "metadata": metadata,
        "spec": {
            "failurePolicy": {
                "maxRestarts": flags.restarts,
                # The Job's own policy has found a code that a new start would not change.
                "rules": [
                    {
                        "name": "final",
                        "action": "FailJobSet",
                        "onJobFailureReasons": ["PodFailurePolicy"],
                    }
                ],
            },
            "replicatedJobs": [
                {"name": "slice", "replicas": flags.slices, "template": {"spec": job}}
            ],
        },
    }


def pod(flags: argparse.Namespace) -> dict[str, Any]:
    """The pod of one host.

    GKE adds TPU_WORKER_HOSTNAMES and TPU_WORKER_ID, and MEGASCALE_… where a JobSet has several
    slices: by these jax.distributed finds its processes.
    """
    attempt = {"fieldRef": {"fieldPath": f"metadata.annotations['{RESTART_ATTEMPT}']"}}
    spec: dict[str, Any] = {
        "restartPolicy": "Never",  # podFailurePolicy asks for it
        "terminationGracePeriodSeconds": flags.grace,
        "nodeSelector": {
            "cloud.google.com/gke-tpu-accelerator": flags.accelerator,
            "cloud.google.com/gke-tpu-topology": "x".join(map(str, flags.topology)),
        },
        "containers": [
            {
                "name": CONTAINER,
                "image": flags.image,
                # As the container's first process, Python gets Kubernetes' SIGTERM itself.
                "command": ["python", "-m", "flamingo_jax", *flags.arguments],
                "env": [{"name": "FLAMINGO_RESTARTS", "valueFrom": attempt}],
                "resources": {"limits": {"google.com/tpu": flags.chips_per_host}},
            }
        ],
    }
    if flags.spot:
        spec["nodeSelector"]["cloud.google.com/gke-spot"] = "true"
    if flags.slices > 1:  # slices talk over the hosts' own network cards
        spec |= {"hostNetwork": True, "dnsPolicy": "ClusterFirstWithHostNet"}
    if flags.service_account:
        spec["serviceAccountName"] = flags.service_account
    return spec


def xpk(flags: argparse.Namespace) -> list[str]:
    """`xpk workload create …`.

    XPK runs the command in a subshell and signals that: by `exec` Python takes its place.
    """
    command = shlex.join(["exec", "python", "-m", "flamingo_jax", *flags.arguments])
    return [
        *("xpk", "workload", "create"),
        f"--project={flags.project}",
        f"--zone={flags.zone}",
        f"--cluster={flags.cluster}",
        f"--workload={flags.name}",
        f"--tpu-type={flags.tpu_type}",
        f"--num-slices={flags.slices}",
        f"--docker-image={flags.image}",
        f"--max-restarts={flags.restarts}",
        f"--restart-on-exit-codes={XPK_RESTARTS}",
        f"--termination-grace-period-seconds={flags.grace}",
        *(["--spot"] if flags.spot else []),
        f"--command={command}",
    ]


def dims(text: str) -> tuple[int, ...]:
    """4x4x4 → (4, 4, 4)."""
    sizes = tuple(int(size) for size in text.split("x"))
    if len(sizes) not in (2, 3) or min(sizes) < 1:
        raise argparse.ArgumentTypeError(f"{text} is no topology; give one such as 4x4 or 4x4x4")
    return sizes


def make_parser() -> argparse.ArgumentParser:
    """The flags before `--`."""
    parser = argparse.ArgumentParser(
        "gke.py",
        usage="gke.py --name=… --image=… [flags] -- train --config=FILE.py --workdir=gs://… …",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--name", required=True, help="of the job")
    parser.add_argument("--image", required=True, help="built from launch/Dockerfile and pushed")
    parser.add_argument("--slices", type=int, default=1, metavar="N", help="of TPUs (1)")
    parser.add_argument("--spot", action="store_true", help="on nodes that may be preempted")
    what = "new starts before the job is given up (1000)"
    parser.add_argument("--restarts", type=int, default=1000, metavar="N", help=what)
    what = "seconds from SIGTERM to SIGKILL, in which the processes save (600)"
    parser.add_argument("--grace", type=int, default=600, metavar="N", help=what)
    parser.add_argument("--submit", action="store_true", help="run the command that is printed")
    what = "print the JobSet and the commands; write and run nothing"
    parser.add_argument("--dry-run", action="store_true", help=what)

    manifest = parser.add_argument_group("as a JobSet")
    what = "label of the nodes: tpu-v4-podslice, tpu-v5-lite-podslice, tpu-v5p-slice, tpu-v6e-slice"
    manifest.add_argument("--accelerator", default="", help=what)
    manifest.add_argument("--topology", type=dims, default=(), help="of a slice: 4x4, 4x4x4, …")
    what = "of the node's machine type: the 4 in ct5p-hightpu-4t (4)"
    manifest.add_argument("--chips-per-host", type=int, default=4, metavar="N", help=what)
    manifest.add_argument("--out", type=pathlib.Path, help="file to write (NAME.json)")
    manifest.add_argument("--queue", default="", help="Kueue's LocalQueue, where there is one")
    manifest.add_argument("--service-account", default="", help="that may use the bucket")
    label = "cloud.google.com/gke-nodepool"
    what = f"label whose value names a slice's nodes ({label})"
    manifest.add_argument("--pool-label", default=label, help=what)

    through = parser.add_argument_group("through XPK")
    through.add_argument("--xpk", action="store_true", help="xpk workload create instead")
    for name in ("--cluster", "--project", "--zone"):
        through.add_argument(name, default="")
    through.add_argument("--tpu-type", default="", help="as XPK names it: v5p-128, …")
    return parser


def check(parser: argparse.ArgumentParser, flags: argparse.Namespace) -> None:
    """Ends with exit code 2 and a sentence where the flags do not fit together."""
    if not flags.arguments:
        parser.error("nothing to run: give the verb and its flags after --, as --help shows")
    wanted = (
        ("cluster", "project", "zone", "tpu_type") if flags.xpk else ("accelerator", "topology")
    )
    for name in wanted:
        if not getattr(flags, name):
            parser.error(f"give --{name.replace('_', '-')}, as --help shows")
    if flags.slices < 1 or flags.chips_per_host < 1:
        parser.error("--slices and --chips-per-host are at least 1")
    if not flags.xpk and math.prod(flags.topology) % flags.chips_per_host:
        parser.error(
            f"a slice has {math.prod(flags.topology)} chips, which --chips-per-host="
            f"{flags.chips_per_host} does not divide; give the machine type's"
        )


def main(argv: Sequence[str]) -> int:
    """Runs the command line; returns the exit code."""
    parser = make_parser()
    middle = argv.index("--") if "--" in argv else len(argv)
    flags = parser.parse_args(argv[:middle])
    flags.arguments = list(argv[middle + 1 :])
    check(parser, flags)
    if flags.xpk:
        command = xpk(flags)
    else:
        path = flags.out or pathlib.Path(f"{flags.name}.json")
        text = json.dumps(job_set(flags), indent=2, ensure_ascii=False) + "\n"
        command = ["kubectl", "apply", f"--filename={path}"]
        if flags.dry_run:
            print(text, end="")
        else:
            try:
                path.write_text(text, encoding="utf-8")
            except OSError as error:
                parser.error(f"{path} cannot be written ({error.strerror}); give another --out")
    print(shlex.join(command), flush=True)
    if not flags.submit or flags.dry_run:
        return 0
    try:
        return subprocess.run(command, check=False).returncode
    except FileNotFoundError:
        parser.error(f"there is no program {command[0]}; install it")


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
