"""The command line as a table: verb → module, and one line of help. A verb's module is imported when it is called."""

from __future__ import annotations

from fleetbox_cli.verb import Entry, LazyGroup

_V = "fleetbox_cli.verbs."
_MAKE, _USE, _SAVE, _HOST = "Clusters", "Looking and using", "Saved machines", "This host"

ENTRIES = {
    "up": Entry(_V + "up:up", "Make a cluster exist and run.", _MAKE),
    "add": Entry(_V + "add:add", "Add members to a cluster.", _MAKE),
    "start": Entry(_V + "lifecycle:start", "Start stopped clusters or members.", _MAKE),
    "stop": Entry(_V + "lifecycle:stop", "Shut clusters or members down; disks stay.", _MAKE),
    "destroy": Entry(_V + "lifecycle:destroy", "Delete clusters or members and their disks.", _MAKE),
    "ls": Entry(_V + "ls:ls", "List clusters and members.", _USE),
    "status": Entry(_V + "status:status", "Show a cluster in detail.", _USE),
    "inspect": Entry(_V + "inspect:inspect", "Show the record of a cluster or member as JSON.", _USE),
    "ssh": Entry(_V + "ssh:ssh", "Open a shell on a member, or run a command on it.", _USE),
    "ssh-config": Entry(_V + "sshconfig:ssh_config", "Print the members as a configuration of OpenSSH.", _USE),
    "exec": Entry(_V + "exec:exec_", "Run a command on all members of a cluster.", _USE),
    "cp": Entry(_V + "cp:cp", "Copy files to, from and between members.", _USE),
    "enter": Entry(_V + "network:enter", "Run a program of this host on a cluster's network.", _USE),
    "forward": Entry(_V + "network:forward", "Open ports of a member on this host's loopback.", _USE),
    "logs": Entry(_V + "logs:logs", "Show a member's serial console.", _USE),
    "events": Entry(_V + "events:events", "Show what happened to a cluster.", _USE),
    "timeline": Entry(_V + "timeline:timeline", "Show where the time of boots and clones went.", _USE),
    "console": Entry(_V + "console:console", "Use a member's serial console.", _USE),
    "snapshot": Entry(_V + "snapshot:snapshot", "Save members and clusters, and carry them elsewhere.", _SAVE),
    "clone": Entry(_V + "rollback:clone", "Make a new member or cluster of a snapshot.", _SAVE),
    "restore": Entry(_V + "rollback:restore", "Put a member or cluster back to a snapshot.", _SAVE),
    "template": Entry(_V + "template:template", "List and remove what new members are cloned from.", _SAVE),
    "image": Entry(_V + "image:image", "Get, build, list and remove images.", _HOST),
    "holder": Entry(_V + "holder:holder", "List and restart clusters' holders.", _HOST),
    "prune": Entry(_V + "host:prune", "Remove what nobody owns any more.", _HOST),
    "doctor": Entry(_V + "host:doctor", "Check whether this host can run machines.", _HOST),
    "completion": Entry(_V + "completion:completion", "Complete words in bash, zsh and fish.", _HOST),
    "version": Entry(_V + "version:version", "Show the version.", _HOST),
}

app = LazyGroup(
    "fleetbox",
    "Clusters of real Linux virtual machines on one command.",
    ENTRIES,
    epilog="`fleetbox COMMAND --help` shows a command's options and examples.",
)
