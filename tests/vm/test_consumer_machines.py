"""The second project's tests on real machines, by the wheel; one of them is meant to fail, for its failure bundle."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

from tests.distribution import make_consumer
from tests.vm.conftest import Lab

pytestmark = pytest.mark.slow


@pytest.mark.timeout(1800)
@pytest.mark.parametrize("network", ["host", "private"])
def test_consumer_on_real_machines(lab: Lab, tmp_path: Path, network: str) -> None:
    consumer = make_consumer(tmp_path)
    done = consumer.run("-m", "pytest", "--fleetbox-require", "-m", "machines", FLEETBOX_NETWORK=network)
    assert re.search(r"^=+ 1 failed, 4 passed, 7 deselected in", done.stdout, re.MULTILINE), done.stdout
    bundle = Path(re.findall(r"^failure bundle: (.+)$", done.stdout, re.MULTILINE)[-1])
    assert bundle.name == "test_machines.py-test_that_fails"
    [inside] = [p for p in bundle.iterdir() if p.is_dir()]
    assert "meant to fail" in (bundle / "failure.txt").read_text()
    record = json.loads((inside / "cluster.json").read_text())
    assert record["network"] == network
    assert f"master {record['bridge']}" in (inside / "network.txt").read_text()
    assert f"dev {json.loads((inside / 'cluster.json').read_text())['bridge']}" in (inside / "network.txt").read_text()
    assert any(json.loads(line)["event"] == "member" for line in (inside / "events.jsonl").read_text().splitlines())
    for member in ("node-1", "node-2"):
        assert "LISTEN" in (inside / member / "guest.txt").read_text()
        assert "systemd" in (inside / member / "journal.txt").read_text()
        assert (inside / member / "serial.log").exists()
    assert "about to fail" in (inside / "node-1" / "journal.txt").read_text()
    assert "broken.service" in (inside / "node-1" / "guest.txt").read_text(), "systemctl --failed"
