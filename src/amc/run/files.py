"""The names of the files in a run's directory."""

CONFIG = "config.json"
JOURNAL = "journal.jsonl"
TIMINGS = "timings.jsonl"
EARLIER = "earlier.json"  # policies that earlier searches have scored, from which this one learns
POLICY = "policy.json"
SUMMARY = "summary.json"
ANSWERS = "answers.json"  # of the dense network and the result on the test split, class by class
MODEL = "model.safetensors"
MODEL_FINETUNED = "model-finetuned.safetensors"
RECOVERY = "recovery.jsonl"  # the plans of recoveries: the same plan gives the same network
FINETUNE = "finetune.jsonl"
FINETUNE_STATE = "finetune-state.json"
TABLE = "latency-table.json"
LATENCY = "latency.json"  # what `amc latency` measured
EXPORT = "export.json"  # what `amc export` wrote, and how far it is from the network
MEASURED = "measured.json"  # of every result of a study, on every runtime; and why a cell has none
PREPARED = "prepared.safetensors"  # until the search has ended
REPORT = "report.html"
STATUS = "status.json"  # what the job is doing, while it runs
LOCK = ".lock"


def baseline_journal(agent: str) -> str:
    """Name of the journal of a baseline that was scored beside the main agent."""
    return f"journal-{agent}.jsonl"


def logged(logger: str) -> str:
    """Name of the file that remembers what a logger has been told."""
    return f"logged-{logger}.jsonl"
