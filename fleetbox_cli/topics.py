"""Manual pages of section 7: what belongs to no single verb.

A section's text is paragraphs; a block that begins with two blanks is a list of `term: text`, one with four stands as
it is.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass


@dataclass(frozen=True)
class Topic:
    """A page: `verbs` are the pages of section 1 that it belongs to."""

    name: str
    summary: str
    verbs: tuple[str, ...]
    sections: Mapping[str, str]


IMAGES = Topic(
    "fleetbox-images",
    "the disks that members of a fleetbox cluster start from",
    ("fleetbox-image", "fleetbox-image-build", "fleetbox-image-import", "fleetbox-up"),
    {
        "DESCRIPTION": """
An image is a base disk that never changes, with the kernel and initrd that were read out of it. It is known by the
digest of its content and by the names that it was given. A member's own disk holds only what differs from its image, so
members cost little disk, and an image that a member stands on is not removed.

Wherever an image is asked for (--image of fleetbox up, the image verbs), it is one of these:

  alias: debian-11, debian-12, debian-13, ubuntu-22.04, ubuntu-24.04, ubuntu-26.04: a release of a distribution, pinned
    by digest. debian-12 is the default.
  name: one that fleetbox image build or import gave
  digest: or its first digits, as fleetbox image ls shows them
  URL: an http or https address of a disk image; it is fetched once
  file: a path with a slash in it: a disk image here, raw or qcow2
""",
        "SOURCES OF AN ALIAS": """
An alias is first looked for among the images that are here. Then the distribution's published cloud image is fetched;
a download that was interrupted is resumed, its SHA-256 is checked, and of several commands that ask for the same
image one fetches it. Where its host cannot be reached, a Debian image is built from the signed archive of the
distribution (this host's own package mirror), with the same contents: kernel, systemd, cloud-init and an SSH server.
Building needs root and mmdebstrap. Which source was taken is said, and shown by fleetbox image inspect.
""",
        "IMAGES OF ONE'S OWN": """
fleetbox image build builds from the archive with further packages and scripts that run in the image:

    fleetbox image build --name web --include nginx --run ./setup.sh
    fleetbox up mycluster --image web

fleetbox image import takes in a disk image that was made elsewhere. It has to contain cloud-init (with the NoCloud
source) and an SSH server. A qcow2 file that refers to another file is refused.
""",
        "HOW A MEMBER STARTS": """
The image's kernel and initrd are handed to the machine directly, which is faster than firmware and a boot loader;
kernels that are installed in a guest later are ignored then. --boot firmware starts through firmware and boot loader
instead, as does an image whose kernel cannot be read, where the hypervisor can do that. --kernel FILE boots another
kernel.
""",
        "TEMPLATES": """
New members are normally not booted: they are clones of a template, a machine of the same image and resources that was
booted once and saved. A template is made when the first member of its kind is, and is a cache: fleetbox template ls
shows them, fleetbox template rm removes them. --cold boots for real.
""",
        "FILES": """
  ~/.local/share/fleetbox/images/DIGEST/: image.json, kernel and initrd of an image
  ~/.local/share/fleetbox/blobs/DIGEST.raw: its disk, sparse
  ~/.cache/fleetbox/downloads/: downloads that are not finished

XDG_DATA_HOME, XDG_CACHE_HOME and FLEETBOX_HOME move them.
""",
    },
)

NETWORKING = Topic(
    "fleetbox-networking",
    "the network of a fleetbox cluster, and ways to reach its members",
    ("fleetbox-up", "fleetbox-ssh", "fleetbox-ssh-config", "fleetbox-cp", "fleetbox-enter", "fleetbox-forward"),
    {
        "DESCRIPTION": """
Each cluster has a network of its own: a bridge, an interface for each member, and a subnet that no route or address of
this host uses, out of 192.168.0.0/16 or 10.64.0.0/10. The first address is the gateway, members get the lowest free
ones. Addresses are kept while a member is stopped; when the subnet has been taken meanwhile, the members come back on
another one, and that is said.

Members reach each other by address and, where dnsmasq is installed on this host, by name (ping node-2). They reach what
this host reaches, through network address translation; nobody outside reaches them.
""",
        "MODES": """
--network of fleetbox up chooses where the network is made:

  host: in this host's network, which needs root. What is made is a bridge and interfaces whose names begin with fb, one
    nftables table, the forwarding flag of the uplink, and where another firewall (Docker's) drops forwarded packets an
    accept in its chain. All of it is written down before it is made, and removed with the cluster's last machine.
  private: in a network namespace of the cluster's own, which needs no root and changes nothing on this host. Members
    reach the outside through pasta, or slirp4netns where that is missing, and never this host's loopback. When the
    last machine has ended, the kernel removes all of it.
  auto: the default: host for root, else private.
""",
        "REACHING A MEMBER": """
fleetbox ssh runs OpenSSH as the user fleet, who may use sudo. Host keys are made on this host and put into the guest,
so they are checked strictly from the first connection on. The connection stays open for five minutes and is shared by
fleetbox ssh, exec and cp.

Other programs that speak SSH are told by a configuration:

    fleetbox ssh-config > ~/.ssh/fleetbox      # and "Include fleetbox" at the top of ~/.ssh/config
    ssh node-1.mycluster
    rsync -a ./site/ node-1.mycluster:site/

Ports are forwarded by ssh's own options, which stand before the member:

    fleetbox ssh -N -L 8080:localhost:80 node-1

A private network has no route from this host. All of the above works there as well, as the holder makes connections
and hands them over; what else there is:

    fleetbox forward node-1 8080:80                 # a member's port on this host's loopback
    fleetbox enter mycluster -- psql -h node-1      # a program of this host on the cluster's network

fleetbox console needs no network at all: it is the guest's serial line.
""",
        "CLEANING UP": """
Stopping a cluster removes its network; a holder that was killed leaves it to the next command for that cluster.
fleetbox prune removes what nobody owns any more, and fleetbox doctor says what would keep a network from working.
""",
        "FILES": """
  ~/.local/state/fleetbox/networks/BRIDGE.json: everything of a network that is on this host
  ~/.local/state/fleetbox/clusters/CLUSTER/known_hosts: the host keys of its members
  ~/.local/share/fleetbox/keys/id_ed25519: the key that opens this user's guests
""",
    },
)

TOPICS = (IMAGES, NETWORKING)
