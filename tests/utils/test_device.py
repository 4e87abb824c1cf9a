import platform

import pytest

from utils.device import cpu_name

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
