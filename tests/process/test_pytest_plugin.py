"""The pytest plugin as users have it: pytest in a process of its own, over fake machines."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import textwrap
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from fleetbox import paths
from fleetbox.backends.base import timeout_scale
from fleetbox.records import cluster_names
from tests.home import leftovers, processes_of

Until = Callable[..., None]


@dataclass
class Project:
    """A folder with tests of its own."""

    folder: Path
    home: Path
    running: list[subprocess.Popen[str]] = field(default_factory=list)

    def tests(self, text: str) -> None:
        code = "import os, signal, pytest, fleetbox\nfrom fleetbox.backends.fake import recall, tell\n"
        (self.folder / "test_it.py").write_text(code + textwrap.dedent(text))

    def start(self, *words: str, **environment: str) -> subprocess.Popen[str]:
        argv = [sys.executable, "-m", "pytest", "-q", "-rA", "--fleetbox-backend", "fake", *words]
        pipe = subprocess.PIPE
        env = {**os.environ, **environment}
        child = subprocess.Popen(argv, cwd=self.folder, env=env, stdout=pipe, stderr=subprocess.STDOUT, text=True)
        self.running.append(child)
        return child

    def run(self, *words: str, **environment: str) -> tuple[int, str]:
        """Exit code and output."""
        child = self.start(*words, **environment)
        output, _ = child.communicate(timeout=100 * timeout_scale())
        return child.returncode, output

    def bundle(self) -> Path:
        [found] = self.folder.glob("fleetbox-failures/run-*/*")
        return found


@pytest.fixture
def project(fleetbox_home: Path, tmp_path: Path) -> Iterator[Project]:
    (tmp_path / "pytest.ini").write_text("[pytest]\n")
    project = Project(tmp_path, fleetbox_home)
    yield project
    for child in project.running:
        if child.poll() is None:
            child.kill()
        child.communicate()


def gone(home: Path) -> bool:
    """Whether nothing of any cluster is left: no process, no socket, no record, no disk, no snapshot."""
    kept = [paths.clusters_dir(), paths.data_dir() / "clusters", paths.snapshots_dir()]
    files = [name for top in kept for _, _, names in os.walk(top) for name in names if name != ".lock"]
    return not leftovers(home) and not cluster_names() and not files


def test_the_plugin_imports_nothing_until_it_is_used(project: Project) -> None:
    (project.folder / "test_it.py").write_text(
        "import sys\ndef test_nothing():\n    print(sorted(m for m in sys.modules if m.startswith('fleetbox')))\n"
        "    assert not {'msgspec', 'requests', 'paramiko', 'psutil'} & set(sys.modules)\n"
    )
    code, output = project.run()
    assert code == 0, output
    assert "['fleetbox', 'fleetbox._version', 'fleetbox.pytest_plugin']" in output


def test_fixtures_scopes_and_reset(project: Project, until: Until) -> None:
    project.tests(
        """
        from fleetbox.pytest_plugin import Fleet, FleetCluster

        shared = pytest.mark.fleetbox(2, scope="module", memory="256M")

        def recalled(member):
            return recall(member.record.handle)

        def remember(member, text):
            assert tell(member.record.handle, text)
            member.wait_for(fleetbox.wait.log(text))

        def test_one_member_by_default(member):
            assert member.name == "node-1"
            assert member.state == "running"
            assert member.cluster.startswith("t-test-one-member-by-default-")
            assert fleetbox.Cluster(member.cluster).record.bound

        @shared
        def test_first_user(cluster):
            assert isinstance(cluster, FleetCluster)
            assert [m.name for m in cluster.members] == ["node-1", "node-2"]
            assert cluster.member("node-1").record.spec.memory_bytes == 256 << 20
            remember(cluster.members[0], "dirt")
            cluster.add(["extra"])
            cluster.stop(["node-2"])

        @shared
        def test_second_user_has_the_same_and_resets_it(cluster, request):
            assert "dirt" in recalled(cluster.members[0])
            assert len(fleetbox.clusters()) == 1  # the one of the first test is gone
            cluster.reset()
            assert [(m.name, m.state) for m in cluster.members] == [("node-1", "running"), ("node-2", "running")]
            assert recalled(cluster.members[0]) == []

        @shared
        @pytest.mark.fleetbox(reset=True)
        @pytest.mark.parametrize("turn", [1, 2])
        def test_reset_by_marker(cluster, turn):
            assert recalled(cluster.members[0]) == []
            remember(cluster.members[0], f"turn {turn}")

        @shared
        @pytest.mark.fleetbox(members=1)
        def test_another_wish_is_another_cluster(cluster):
            assert len(cluster.members) == 1

        def test_fleet(fleet):
            assert isinstance(fleet, Fleet)
            one, two = fleet.up(members=2, save=True), fleet.member()
            assert one.name != two.cluster
            remember(one.members[0], "dirt")
            one.reset()
            assert recalled(one.members[0]) == []
            assert one.limit_s(10) == 10 * float(os.environ.get("FLEETBOX_TIMEOUT_SCALE", 1))

        @pytest.mark.fleetbox(real=True)
        def test_real(cluster):
            raise AssertionError("this runs on real machines only")

        def test_unshared_cannot_be_reset(cluster):
            with pytest.raises(fleetbox.errors.UsageError, match="no first state"):
                cluster.reset()
        """
    )
    code, output = project.run()
    assert code == 0, output
    assert "8 passed, 1 skipped" in output
    assert "needs real guests: the backend is fake" in output
    until(lambda: gone(project.home), 60.0)


def test_a_session_s_cluster_is_shared_by_modules(project: Project, until: Until) -> None:
    project.tests(
        """
        @pytest.mark.fleetbox(scope="session")
        def test_one(cluster, pytestconfig):
            pytestconfig.cache.set("cluster", cluster.record.id)
        """
    )
    (project.folder / "test_other.py").write_text(
        "import pytest\n@pytest.mark.fleetbox(scope='session')\ndef test_two(cluster, pytestconfig):\n"
        "    assert cluster.record.id == pytestconfig.cache.get('cluster', None)\n"
    )
    code, output = project.run()
    assert (code, "2 passed" in output) == (0, True), output
    until(lambda: gone(project.home), 60.0)


def test_failure_bundle(project: Project, until: Until) -> None:
    project.tests(
        """
        @pytest.mark.fleetbox(members=2)
        def test_fails(cluster):
            tell(cluster.members[1].record.handle, "something is wrong here")
            cluster.members[1].wait_for(fleetbox.wait.log("wrong here"))
            assert cluster.members == []
        """
    )
    code, output = project.run()
    assert code == 1, output
    bundle = project.bundle()
    assert output.count(f"failure bundle: {bundle}") == 2, "beside the failure, and at the end"
    assert bundle.name == "test_it.py-test_fails"
    [inside] = [p for p in bundle.iterdir() if p.is_dir()]
    text = (bundle / "failure.txt").read_text()
    assert "test_it.py::test_fails: call failed" in text
    assert "assert cluster.members == []" in text
    assert re.search(r"  node-2: running, 192\.168\.\d+\.\d+", text)
    assert "something is wrong here" in (inside / "node-2" / "serial.log").read_text()
    assert set(json.loads((inside / "cluster.json").read_text())["members"]) == {"node-1", "node-2"}
    assert "serving" in (inside / "holder.log").read_text()
    for name in ("events.jsonl", "operations.jsonl"):
        events = [json.loads(line) for line in (inside / name).read_text().splitlines()]
        assert events
        assert all(abs(e.get("seen_at", e.get("at", 0)) - time.time()) < 3600 for e in events)
    assert (inside / "network.txt").exists()
    assert not (inside / "node-1" / "guest.txt").exists(), "fake machines answer nobody"
    until(lambda: gone(project.home), 60.0)


def test_a_cluster_that_cannot_be_made_is_a_failure_with_a_bundle(project: Project, until: Until) -> None:
    project.tests(
        """
        @pytest.mark.fleetbox(members=2, cold=True, scope="module")
        @pytest.mark.parametrize("turn", [1, 2])
        def test_never(cluster, turn):
            pass
        """
    )
    code, output = project.run(FLEETBOX_FAKE_FAULTS="start:node-2=fail")
    assert code == 1, output
    assert "2 errors" in output
    assert "fleetbox: " in output
    assert "node-2" in output
    assert "Traceback" not in output
    assert "During handling" not in output
    assert "fleets.py" not in output, "no frame of ours"
    texts = [p.read_text() for p in project.folder.glob("fleetbox-failures/run-*/*/failure.txt")]
    assert len(texts) == 2
    assert all("refuses to start" in text for text in texts), "with the end of the serial log"
    until(lambda: gone(project.home), 60.0)


def test_a_host_that_cannot_is_a_reason_to_skip(project: Project) -> None:
    project.tests("def test_it(member):\n    pass\n\ndef test_more(fleet):\n    fleet.up()\n")
    cannot = ("--fleetbox-backend", "qemu")
    code, output = project.run(*cannot, FLEETBOX_QEMU="/nonexistent/qemu")
    assert (code, "2 skipped" in output) == (0, True), output
    assert "this host cannot run it: there is no QEMU /nonexistent/qemu" in output
    code, output = project.run(*cannot, "--fleetbox-require", FLEETBOX_QEMU="/nonexistent/qemu")
    assert (code, "1 failed, 1 error" in output) == (1, True), output


def test_words_that_make_no_sense(project: Project) -> None:
    project.tests(
        """
        @pytest.mark.fleetbox(member=3)
        def test_unknown(cluster): pass

        @pytest.mark.fleetbox(scope="galaxy")
        def test_scope(cluster): pass

        @pytest.mark.fleetbox(reset=True)
        def test_reset(cluster): pass

        @pytest.mark.fleetbox(memory="much")
        def test_memory(cluster): pass

        @pytest.mark.fleetbox(1, 2)
        def test_two(cluster): pass
        """
    )
    code, output = project.run()
    assert (code, "5 errors" in output) == (1, True), output
    for said in ("does not know member", "'galaxy' is no scope", "is never reset", "'much'", "one plain argument"):
        assert said in output
    assert not (project.folder / "fleetbox-failures").exists(), "there was no cluster"


FOUR = """
    @pytest.mark.parametrize("turn", range(4))
    @pytest.mark.fleetbox(scope="module")
    def test_many(cluster, fleet, turn, request):
        name = fleet.up().name
        assert cluster.record.bound
        workers = {c.name for c in fleetbox.clusters()}
        assert {name, cluster.name} <= workers
        assert turn != 2, "the third one fails"
"""


def test_under_xdist(project: Project, until: Until) -> None:
    project.tests(FOUR)
    code, output = project.run("-n", "4")
    assert code == 1, output
    assert "1 failed, 3 passed" in output
    bundle = project.bundle()
    assert output.count(f"failure bundle: {bundle}") == 2
    assert all(re.search(r"-gw\d-[0-9a-f]{6}$", p.name) for p in bundle.iterdir() if p.is_dir())
    until(lambda: gone(project.home), 60.0)


def test_last_failed_and_exit_first(project: Project, until: Until) -> None:
    project.tests(FOUR)
    for number in range(4):
        old = project.folder / "fleetbox-failures" / f"run-{number}"
        old.mkdir(parents=True)
        os.utime(old, (number, number))
    code, output = project.run("-x")
    assert (code, "1 failed, 2 passed" in output) == (1, True), output
    code, output = project.run("--lf")
    assert (code, "1 failed" in output) == (1, True), output
    assert "passed" not in output
    runs = {p.name for p in project.folder.glob("fleetbox-failures/run-*")}
    assert len(runs) == 3, "bundles of the last three runs are kept"
    assert "run-3" in runs
    until(lambda: gone(project.home), 60.0)


@pytest.mark.parametrize("during", ["test", "up", "call"])
def test_ctrl_c_ends_the_run_and_leaves_nothing(project: Project, until: Until, during: str) -> None:
    body = {"test": "time.sleep(600)", "up": "pass", "call": "cluster.start()"}[during]
    project.tests(
        f"""
        import pathlib, time

        @pytest.mark.fleetbox(cold=True, scope="session")
        def test_long(cluster):
            if {during!r} == "call":
                cluster.stop()
                pathlib.Path({str(project.folder / "faults")!r}).write_text("start=hang")
            print("here", flush=True)
            {body}

        def test_next(cluster):
            raise AssertionError("the run goes on")
        """
    )
    faults = project.folder / "faults"
    if during == "up":
        faults.write_text("start=hang")
    child = project.start("-s", FLEETBOX_FAKE_FAULTS=f"@{faults}")
    if during == "test":
        assert child.stdout is not None
        while "here" not in (line := child.stdout.readline()):
            assert line, "pytest has ended"
    else:
        until(lambda: (during == "up" or faults.exists()) and starting())
    child.send_signal(signal.SIGINT)
    output, _ = child.communicate(timeout=100 * timeout_scale())
    assert child.returncode == 2, output
    assert "the run goes on" not in output
    until(lambda: gone(project.home), 60.0)


def starting() -> bool:
    """Whether a machine is being started."""
    return bool(list((paths.runtime_dir()).glob("*/node-1.pid")))


def test_a_killed_run_leaves_nothing(project: Project, until: Until) -> None:
    project.tests(
        """
        import time

        @pytest.mark.fleetbox(2, scope="session")
        def test_long(cluster, fleet):
            fleet.up(save=True)
            print("here", flush=True)
            time.sleep(600)
        """
    )
    child = project.start("-s")
    assert child.stdout is not None
    while "here" not in (line := child.stdout.readline()):
        assert line, "pytest has ended"
    assert len(processes_of(project.home)) >= 6, "pytest, two holders, three machines"
    child.kill()
    until(lambda: gone(project.home), 60.0)


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGINT])
def test_an_xdist_run_that_is_ended_leaves_nothing(project: Project, until: Until, number: int) -> None:
    project.tests(
        f"""
        import pathlib, time

        @pytest.mark.parametrize("turn", range(2))
        def test_long(cluster, turn):
            pathlib.Path({str(project.folder)!r}, f"here-{{turn}}").touch()
            time.sleep(600)
        """
    )
    child = project.start("-n", "2")
    until(lambda: len(list(project.folder.glob("here-*"))) == 2)
    child.send_signal(number)
    child.communicate(timeout=100 * timeout_scale())
    until(lambda: gone(project.home), 60.0)
