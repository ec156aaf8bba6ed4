"""The options of a Beam pipeline that a request may set: where it runs and with how many workers.

Not allowed are options that run code of the caller's choice, write elsewhere, or hold secrets.
"""

from collections.abc import Sequence

RUNNERS = ("DirectRunner", "PrismRunner", "FlinkRunner", "SparkRunner", "PortableRunner", "DataflowRunner")
_ENVIRONMENTS = ("DOCKER", "EXTERNAL", "LOOPBACK")
_FLAGS = ("no_use_public_ips", "use_public_ips", "flink_submit_uber_jar", "spark_submit_uber_jar")
_VALUES = (
    "artifact_endpoint",
    "autoscaling_algorithm",
    "direct_num_workers",
    "direct_running_mode",
    "disk_size_gb",
    "environment_type",
    "flink_master",
    "flink_version",
    "job_endpoint",
    "job_name",
    "labels",
    "machine_type",
    "max_num_workers",
    "network",
    "num_workers",
    "parallelism",
    "project",
    "region",
    "runner",
    "sdk_container_image",
    "sdk_worker_parallelism",
    "spark_master_url",
    "spark_version",
    "staging_location",
    "subnetwork",
    "temp_location",
    "worker_zone",
)


def beam_option_problems(options: Sequence[str]) -> list[tuple[str, str]]:
    """Returns the problems of the options of a pipeline, as pairs of field and description.

    Args:
        options: Options such as `--runner=FlinkRunner`, in the form that the rule of their field requires.
    """
    return [
        (f"beam_options[{index}]", problem) for index, option in enumerate(options) if (problem := _problem(option))
    ]


def _problem(option: str) -> str:
    name, is_given, value = option.removeprefix("--").partition("=")
    if name in _FLAGS:
        return f"--{name} takes no value" if is_given else ""
    if name not in _VALUES:
        return f"--{name} may not be set; these may: {', '.join(sorted((*_VALUES, *_FLAGS)))}"
    if not value:
        return f"--{name} needs a value"
    if name == "runner" and value not in RUNNERS:
        return f"must be one of {', '.join(RUNNERS)}"
    if name == "environment_type" and value not in _ENVIRONMENTS:
        return f"must be one of {', '.join(_ENVIRONMENTS)}, as others run a program of the caller's choice"
    return ""
