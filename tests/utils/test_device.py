import platform

import pytest

from utils.device import cpu_name, cpu_quota

INTEL = """\
processor\t: 0
vendor_id\t: GenuineIntel
cpu family\t: 6
model\t\t: 85
model name\t: Intel Xeon Processor
stepping\t: 7
"""
ARM = """\
processor\t: 0
CPU implementer\t: 0x41
CPU architecture: 8
CPU part\t: 0xd0c
"""


@pytest.mark.parametrize(
    ("cpuinfo", "name"),
    [
        (INTEL, "Intel Xeon Processor 6.85.7"),
        (INTEL.replace(": 7", ": 11"), "Intel Xeon Processor 6.85.11"),
        (ARM, f"{platform.processor() or platform.machine()} 0x41.0xd0c"),
        ("model name\t: Another\n", "Another"),
    ],
)
def test_processors_of_one_name_are_told_apart(tmp_path, cpuinfo, name):
    file = tmp_path / "cpuinfo"
    file.write_text(cpuinfo)
    assert cpu_name(file) == name


def test_a_processor_without_cpuinfo_has_a_name_too(tmp_path):
    assert cpu_name(tmp_path / "missing")


@pytest.mark.parametrize(
    ("limits", "quota"),
    [
        ({}, None),
        ({"": "max 100000"}, None),
        ({"": "150000 100000"}, 2),  # half a processor needs a thread, too
        ({"": "max 100000", "job": "800000 100000", "job/step": "max 100000"}, 8),
        ({"job": "400000 100000", "job/step": "50000 100000"}, 1),
    ],
)
def test_the_share_of_the_processors_is_that_of_the_narrowest_cgroup(tmp_path, limits, quota):
    (tmp_path / "groups/job/step").mkdir(parents=True)
    for group, limit in limits.items():
        (tmp_path / "groups" / group / "cpu.max").write_text(limit + "\n")
    (tmp_path / "own").write_text("0::/job/step\n")
    assert cpu_quota(tmp_path / "groups", tmp_path / "own") == quota


def test_without_cgroups_there_is_no_limit(tmp_path):
    assert cpu_quota(tmp_path, tmp_path / "missing") is None
    (tmp_path / "own").write_text("1:cpu:/old\n")  # version 1
    assert cpu_quota(tmp_path, tmp_path / "own") is None
