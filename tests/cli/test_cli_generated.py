"""Man pages, completion scripts and completion itself."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import msgspec
import pytest

from fleetbox import paths
from fleetbox_cli.completion import complete
from fleetbox_cli.generate import files, main
from tests.cli.conftest import REPOSITORY, Run, write_cluster


def test_generated_files_are_current(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--check"]) == 0, capsys.readouterr().err


def test_every_verb_has_a_page_with_help_and_examples() -> None:
    from fleetbox_cli.app import ENTRIES

    pages = {path.name: text for path, text in files().items() if path.parent.name == "man"}
    assert {f"fleetbox-{name}.1" for name in ENTRIES} < set(pages)
    for name, text in pages.items():
        assert text.startswith(".TH "), name
        if name.endswith(".1") and ".SH COMMANDS" not in text:  # a group's verbs have them
            assert ".SH EXAMPLES" in text, name
            assert "fleetbox" in text.partition(".SH EXAMPLES")[2], name


def _pages() -> list[Path]:
    return sorted((REPOSITORY / "man").iterdir())


@pytest.mark.skipif(not shutil.which("groff"), reason="no groff here")
def test_pages_are_proper_roff() -> None:
    command = ["groff", "-man", "-Tutf8", "-ww", *map(str, _pages())]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert done.stderr == ""


@pytest.mark.skipif(not shutil.which("man"), reason="no man here")
def test_man_shows_every_page_without_a_warning() -> None:
    surroundings = os.environ | {"MAN_KEEP_STDERR": "1", "LC_ALL": "C.UTF-8", "MANWIDTH": "80", "PAGER": "cat"}
    command = ["man", "--warnings=w", "-P", "cat", "-l", *map(str, _pages())]
    done = subprocess.run(command, env=surroundings, capture_output=True, text=True, check=True)
    assert done.stderr == ""
    for page in _pages():
        assert f"{page.stem.upper()}({page.suffix[1:]})" in done.stdout
        assert "\\" not in done.stdout.partition(f"{page.stem.upper()}(")[2][:2000]


def test_topics_have_pages_that_are_referred_to() -> None:
    made = {path.name: text for path, text in files().items() if path.parent.name == "man"}
    assert {"fleetbox-images.7", "fleetbox-networking.7"} <= set(made)
    for text in made.values():
        for name, section in re.findall(r"(fleetbox[a-z-]*) \((\d)\)", text.replace("\\-", "-")):
            assert f"{name}.{section}" in made, name


def _values(*words: str) -> list[str]:
    return [line.partition("\t")[0] for line in complete(words)]


def test_verbs_and_options(home: Path) -> None:
    assert _values("st") == ["start", "status", "stop"]
    assert _values("image", "i") == ["import", "inspect"]
    assert _values("--json", "ver") == ["version"]
    assert _values("--cluster", "demo", "ver") == ["version"]
    assert _values("up", "--me") == ["--members", "--memory"]
    assert _values("up", "--network", "") == ["auto", "host", "private"]
    assert _values("nonsense", "") == []
    assert "up\tMake a cluster exist and run." in complete([""])
    assert complete([]) == complete([""])


def test_names_come_from_records_only(home: Path) -> None:
    assert _values("ssh", "") == []
    assert not home.exists()
    write_cluster("demo", "node-1", "db")
    write_cluster("other", "node-1")
    write_cluster("broken", "x")
    paths.cluster_record("broken").write_text("{")
    assert _values("status", "") == ["broken", "demo", "other"]
    assert _values("ssh", "") == ["db", "demo", "demo/db", "demo/node-1", "other", "other/node-1"]
    assert _values("ssh", "demo/n") == ["demo/node-1"]
    assert _values("stop", "demo", "d") == ["db", "demo/db", "demo/node-1"]
    assert _values("--cluster", "d") == ["demo"]
    assert _values("ls", "--cluster", "o") == ["other"]
    assert _values("ssh", "db", "d") == []
    assert _values("ssh", "db", "ls", "-") == []
    assert _values("exec", "de") == ["demo"]


def test_scope_makes_bare_names_complete(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_cluster("demo", "node-1")
    write_cluster("other", "node-1")
    assert "node-1" not in _values("ssh", "n")
    monkeypatch.setenv("FLEETBOX_CLUSTER", "demo")
    assert complete(["ssh", "n"]) == ["node-1\trunning, of demo"]


def test_images(home: Path) -> None:
    for digest, names in (("aa" * 32, ["web"]), ("bb" * 32, [])):
        folder = paths.images_dir() / digest
        folder.mkdir(parents=True)
        (folder / "image.json").write_bytes(msgspec.json.encode({"digest": digest, "names": names, "source": "built"}))
    (paths.images_dir() / "cc").mkdir()
    (paths.images_dir() / "cc" / "image.json").write_text("{")
    assert _values("up", "x", "--image", "") == ["b" * 12, "debian-12", "web"]
    assert _values("image", "rm", "web", "") == ["b" * 12, "debian-12"]


@pytest.fixture
def fleetbox_on_path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    program = tmp_path / "fleetbox"
    program.write_text(f'#!/bin/sh\nPYTHONPATH={REPOSITORY} exec {sys.executable} -m fleetbox_cli "$@"\n')
    program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")


def test_copies_complete_members_and_files(home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_cluster("demo", "node-1")
    write_cluster("other", "node-1", "db")
    here = tmp_path / "here"
    (here / "docs").mkdir(parents=True)
    (here / "data").touch()
    (here / ".hidden").touch()
    monkeypatch.chdir(here)
    assert _values("cp", "d") == ["data", "db:", "demo/node-1:", "docs/"]
    assert _values("cp", "data", "") == ["db:", "demo/node-1:", "docs/", "other/db:", "other/node-1:"]
    assert _values("cp", "./") == ["./data", "./docs/"]
    assert _values("cp", "-", ".") == [".hidden"]
    assert _values("cp", "db:/etc/") == []  # a guest is not asked


def test_the_default_image_is_the_default() -> None:
    from fleetbox.specs import DEFAULT_IMAGE
    from fleetbox_cli import completion

    assert completion.DEFAULT_IMAGE == DEFAULT_IMAGE


def test_scripts_are_shown_and_installed(run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    for name in ("XDG_DATA_HOME", "XDG_CONFIG_HOME", "BASH_COMPLETION_USER_DIR"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("SHELL", "/bin/zsh")
    places = {
        "bash": (".local/share/bash-completion/completions/fleetbox", "fleetbox.bash"),
        "zsh": (".local/share/zsh/site-functions/_fleetbox", "_fleetbox"),
        "fish": (".config/fish/completions/fleetbox.fish", "fleetbox.fish"),
    }
    for shell, (place, file) in places.items():
        script = (REPOSITORY / "completions" / file).read_text()
        assert run("completion", "show", shell).stdout == script
        for _ in range(2):  # repeatable
            assert run("completion", "install", shell).exit_code == 0
        assert (tmp_path / place).read_text() == script
    assert "add this to ~/.zshrc:" in run("completion", "install").stdout
    assert not (tmp_path / ".zshrc").exists()
    monkeypatch.setenv("SHELL", "/bin/tcsh")
    assert run("completion", "install").exit_code == 2
    assert run("completion", "show", "tcsh").exit_code == 2


def test_bash(home: Path, fleetbox_on_path: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_cluster("demo", "node-1")
    (tmp_path / "empty").mkdir()
    monkeypatch.chdir(tmp_path / "empty")
    Path("a b").touch()
    script = (
        f"source {REPOSITORY}/completions/fleetbox.bash\n"
        "compopt() { :; }\n"
        'try() { COMP_LINE=$1; shift; COMP_WORDS=("$@"); COMP_CWORD=$(($# - 1)); _fleetbox; echo "${COMPREPLY[@]}"; }\n'
        "try 'fleetbox ssh demo/' fleetbox ssh demo/\n"
        "try 'fleetbox image r' fleetbox image r\n"
        "try 'fleetbox ssh nothing' fleetbox ssh nothing\n"
        "try 'fleetbox up --boot ' fleetbox up --boot ''\n"
        "try 'fleetbox cp demo/no' fleetbox cp demo/no\n"
        "try 'fleetbox cp x demo/node-1:' fleetbox cp x demo/node-1 :\n"  # all of it is there: only what follows it
        "try 'fleetbox cp x demo/node-1:/et' fleetbox cp x demo/node-1 : /et\n"
        "try 'fleetbox cp a: node' fleetbox cp a : node\n"
        "try 'fleetbox cp a' fleetbox cp a\n"
    )
    done = subprocess.run(["bash", "-euc", script], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines() == [
        *("demo/node-1", "rm", "", "auto direct firmware", "demo/node-1:", "''", "", "node-1:", "a\\ b"),
    ]


@pytest.mark.skipif(not shutil.which("fish"), reason="no fish here")
def test_fish(home: Path, fleetbox_on_path: None) -> None:
    write_cluster("demo", "node-1")
    script = (
        f"source {REPOSITORY}/completions/fleetbox.fish\n"
        "complete -C 'fleetbox ssh demo/'; complete -C 'fleetbox image r'"
    )
    done = subprocess.run(["fish", "-c", script], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines() == ["demo/node-1\trunning", "rm\tRemove images that no member uses."]


@pytest.mark.skipif(not shutil.which("zsh"), reason="no zsh here")
def test_zsh(home: Path, fleetbox_on_path: None) -> None:
    write_cluster("demo", "node-1")
    script = (
        "compdef() {}; _files() { print files }; _describe() { print -rl ${(P)2} ${@:3} }\n"
        f"source {REPOSITORY}/completions/_fleetbox\n"
        "words=(fleetbox ssh demo/); CURRENT=3; _fleetbox\n"
        "words=(fleetbox logs --tail 5 x); CURRENT=5; _fleetbox\n"
        "words=(fleetbox up --fixture ''); CURRENT=4; _fleetbox\n"
        "words=(fleetbox cp demo/); CURRENT=3; _fleetbox\n"
    )
    done = subprocess.run(["zsh", "-fc", script], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines() == ["demo/node-1:running", "files", "files", r"demo/node-1\::running", "-S"]
