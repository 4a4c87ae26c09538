"""How a profile lies in a run folder, and what things are called there.

    profile-NODE.jsonl    of each machine: a line that describes it, then a line a sample
    timeline.jsonl        of the first process: where each step's time went (timeline-rank1.jsonl …)
    trace-STEPS.json.gz   what PyTorch's profiler recorded of some steps; opens in Perfetto

Every line is an object with a `kind`. In `profile-NODE.jsonl`:

    about     what the machine is: node, host, cores (those that may be used), machine_cores,
              processor, memory_bytes, gpus [{name, memory_bytes}], interval_ms, missing (counters
              that are not to be had here, in words), torch_threads (where torch is loaded),
              memory_limit_bytes (of a container that may use less), pid (of the process followed),
              vizsla (its version). It comes again when there is news: the last one holds
    sample    time (seconds since 1970) and the numbers in `SAMPLED`, each where there is one;
              cpu and iowait are lists, percent of each core; gpus is a list of objects of
              `SAMPLED_OF_GPU`

In `timeline.jsonl`:

    session   a training begins or is taken up again: time, node, rank, device, process_started
    steps     columns, one entry a step: step, time (when it began), seconds, and `phases`, a column
              of seconds for each phase that occurred. The phases of a step add up to its seconds;
              what was in no phase is `other`
    span      what happened outside of steps: name, time, seconds
    fact      a measurement made for the profile: name and further numbers
"""

from __future__ import annotations

from pathlib import Path

# Names of numbers in a sample: what they are, with their unit.
SAMPLED = {
    "memory": "memory of the machine in use, percent",
    "memory_bytes": "memory of the machine in use",
    "tree_bytes": "resident memory of the process and its children, each counted whole",
    "own_bytes": "resident memory of the process alone",
    "tree_cpu": "processor use of the process and its children, percent of one core",
    "processes": "processes in the tree",
    "threads": "threads in the tree",
    "runnable": "threads of the machine that run or wait for a core",
    "read_ops": "disk reads a second",
    "write_ops": "disk writes a second",
    "read_bytes": "bytes read from disk a second",
    "write_bytes": "bytes written to disk a second",
    "received_bytes": "bytes received by network a second, loopback aside",
    "sent_bytes": "bytes sent by network a second, loopback aside",
    "mhz": "clock of the processor, MHz",
    "celsius": "temperature of the processor",
    "throttled": "times that the processor was slowed for its heat, since the first sample",
    "watts": "power drawn by the processor and its memory, where RAPL can be read",
}
SAMPLED_OF_GPU = {
    "utilization": "share of time in which the device computed, percent",
    "memory": "memory in use, percent",
    "memory_bytes": "memory in use",
    "watts": "power drawn",
    "celsius": "temperature",
    "throttled": "1 where the device is slowed for its heat, else 0",
}

# What a step's time goes to.
STEP_PHASES = {
    "data_wait": "waiting for the next batch",
    "transfer": "moving the batch to the device and making it the network's input",
    "forward": "the network and the loss",
    "backward": "gradients",
    "optimiser": "the update of the weights",
    "debugger": "capturing tensors",
    "other": "what is none of these",
}
# What happens before, between and after steps.
SPANS = {
    "import": "starting Python and importing libraries",
    "data": "finding and dividing the pictures",
    "model": "building the network",
    "weights": "finding, checking and loading the weights",
    "cache": "making ready what is kept: outputs of frozen layers, decoded pictures",
    "setup": "the rest before the first step",
    "first_step": "the first step",
    "evaluation": "judging the validation pictures",
    "checkpoint": "writing a checkpoint",
    "fit": "fitting the head at once (solver lbfgs)",
    "trace": "writing a trace",
    "probe": "measuring what bf16 or a cache would gain, for the profile",
    "final": "exact evaluation and the bundle",
}
STARTUP = ("import", "data", "model", "weights", "cache", "setup", "first_step")

INTERVALS_MS = (100, 60_000)
DEFAULT_INTERVAL_MS = 500


def samples_file(run: Path, node: str) -> Path:
    """The samples of one machine."""
    return run / f"profile-{node}.jsonl"


def timeline_file(run: Path, rank: int = 0) -> Path:
    """The steps of one process; the first one's go by the plain name."""
    return run / (f"timeline-rank{rank}.jsonl" if rank else "timeline.jsonl")
