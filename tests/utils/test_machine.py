import pytest

from utils.machine import cpu_name

INTEL = "processor\t: 0\ncpu family\t: 6\nmodel\t\t: 207\nmodel name\t: Some Processor\n"


@pytest.mark.parametrize(
    ("cpuinfo", "name"),
    [
        (INTEL, "Some Processor 6.207"),
        (INTEL.replace("207", "143"), "Some Processor 6.143"),
        ("processor\t: 0\nmodel name\t: Some Arm\n", "Some Arm"),
    ],
)
def test_generations_of_one_name_are_told_apart(tmp_path, cpuinfo, name):
    file = tmp_path / "cpuinfo"
    file.write_text(cpuinfo)
    assert cpu_name(file) == name


def test_a_processor_without_cpuinfo_has_a_name_too(tmp_path):
    assert cpu_name(tmp_path / "missing")
