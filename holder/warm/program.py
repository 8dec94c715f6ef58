"""What a woken machine runs to become another one: a Perl program of one process.

In an emulated guest every process costs 20 to 50 ms, so everything is done by system calls and netlink from one `perl`
(`perl-base` is Essential in Debian and Ubuntu), with none of its modules loaded. The program is constant. What it is
told arrives on its standard input in lines `# NAME HEX`: no value is ever code, and a shell that reads such a line by
mistake takes it for a comment. It ends its work with one line, `fleetbox:NONCE:ok` or `fleetbox:NONCE:` and errors.

`ROOT` in its environment moves all paths, and leaves out what would change the host: for tests.
"""

from __future__ import annotations

_SOURCE = r"""
# Errors are collected: what can be done is done.
my $r = $ENV{ROOT} // q(); my %d; my @bad; $| = 1;
$SIG{PIPE} = q(IGNORE);
print qq(fleetbox:waiting\n);
while (<STDIN>) {
  last if /^# \./;
  $d{$1} = pack(q(H*), $2) if /^# (\w+) ([0-9a-f]*)\s*$/;
}
exit 1 unless $d{nonce};
# A hangup ends it on the line (a shutdown must not wait), but not when an SSH session goes.
$SIG{HUP} = q(IGNORE) if $d{ssh};
my ($host, $cluster, $id, $nonce) = @d{qw(hostname cluster machine_id nonce)};
sub step { my ($what, $do) = @_; eval { $do->(); 1 } or push @bad, qq($what: $@) }
sub get { open my $f, q(<), $r . $_[0] or return; local $/; my $t = <$f>; $t }
sub must { my $f = $r . $_[0]; open my $h, q(+<), $f or die qq($f: $!\n); $h }
sub names { opendir my $f, $r . $_[0] or return (); map qq($_[0]/$_), grep !/^\.\.?$/, readdir $f }
sub put {
  my ($name, $text, $mode) = @_; my $f = $r . $name; my @old = stat $f;
  # A file that is mounted over cannot be replaced, only written.
  my $new = qq($f.fleetbox~);
  sysopen my $h, $new, 0301, 0600 or die qq($new: $!\n);
  print $h $text; close $h or die qq($new: $!\n);
  chown $old[4], $old[5], $new if @old;
  chmod $mode // (@old ? $old[2] & 07777 : 0644), $new;
  return if rename $new, $f;
  unlink $new; open $h, q(>), $f or die qq($f: $!\n); print $h $text; close $h or die qq($f: $!\n);
}

# First of all randomness, then the time: nothing may be made from the template's.
my ($nr_clock, $nr_sync) = get(q(/proc/self/exe)) =~ /^.{18}\xb7/s ? (112, 81) : (227, 162);
step(q(entropy), sub {
  my $f = must(q(/dev/random)); my $e = $d{entropy};
  ioctl $f, 0x40085203, pack(q(iia*), 8 * length $e, length $e, $e) or die qq($!\n);
  ioctl $f, 0x5207, 0 or die qq($!\n);
}) unless $r;
step(q(clock), sub {
  my $at = pack q(qq), int($d{clock_ns} / 1e9), $d{clock_ns} % 1000000000;
  syscall($nr_clock, 0, $at) == 0 or die qq($!\n);
}) unless $r;

# Who it was is in the guest; where it was on the network is told.
my $lib = q(/var/lib/cloud); my $iid = $d{instance_id};
my ($was_host) = (get(q(/etc/hostname)) // q()) =~ /^(\S+)/;
my ($was_id) = (get(q(/etc/machine-id)) // q()) =~ /^([0-9a-f]{32})/;
my ($was_iid) = (get(qq($lib/data/instance-id)) // q()) =~ /^(\S+)/;
my ($mac, $was_mac) = @d{qw(new_mac old_mac)};
my ($ip, $was_ip) = @d{qw(new_ip old_ip)};

step(q(hostname), sub {
  put(q(/etc/hostname), qq($host\n));
  my $f = must(q(/proc/sys/kernel/hostname)); syswrite $f, $host or die qq($!\n);
});
step(q(hosts), sub {
  my $t = get(q(/etc/hosts)) // q(); my $line = qq(127.0.1.1\t$host.$cluster\t$host);
  $t =~ s/^127\.0\.1\.1[ \t].*$/$line/m or $t = qq($line\n$t);
  put(q(/etc/hosts), $t);
});
step(q(machine-id), sub {
  put(q(/etc/machine-id), qq($id\n), 0444);
  my $f = q(/var/lib/dbus/machine-id); put($f, qq($id\n)) if -f $r . $f && !-l $r . $f;
  $f = q(/run/machine-id); put($f, qq($id\n)) if -e $r . $f;
  if ($was_id && $was_id ne $id) { rename qq($r$_/$was_id), qq($r$_/$id) for qw(/var/log/journal /run/log/journal) }
});
step(q(host key), sub {
  my $k = q(/etc/ssh/ssh_host_ed25519_key);
  unlink qq($r$_) for grep m(/ssh_host_.*_key), names(q(/etc/ssh));
  put($k, $d{host_private}, 0600); put(qq($k.pub), qq($d{host_public}\n), 0644);
  # Since 9.8 the listening process hands the keys on; before, each connection reads them anew.
  if (-e $r . q(/usr/lib/openssh/sshd-session)) { kill q(HUP), $1 if (get(q(/run/sshd.pid)) // q()) =~ /^(\d+)/ }
});
unlink qq($r/run/motd.dynamic);
step(q(authorized key), sub {
  my $f = q(/home/fleet/.ssh/authorized_keys); my $k = $d{authorized_key}; my $t = get($f);
  put($f, qq($t\n$k\n)) if $k && defined $t && index($t, $k) < 0;
});
step(q(cloud-init), sub {
  last_instance() if -d qq($r$lib/data);
});
sub last_instance {
  my $all = qq($lib/instances);
  if ($was_iid && !-e qq($r$all/$iid)) { rename qq($r$all/$was_iid), qq($r$all/$iid) or die qq($!\n) }
  # Copies of the seed that the next boot makes anew, with the template's keys in them.
  unlink map qq($r$all/$iid/$_), qw(obj.pkl user-data.txt user-data.txt.i cloud-config.txt);
  unlink map qq($r/run/cloud-init/$_), qw(instance-data-sensitive.json combined-cloud-config.json ds-identify.log);
  if (-l qq($r$lib/instance)) { unlink qq($r$lib/instance); symlink qq($all/$iid), qq($r$lib/instance) or die qq($!\n) }
  put(qq($lib/data/$_), qq($iid\n)) for qw(instance-id previous-instance-id);
  put(qq($lib/data/previous-hostname), qq($host\n)) if -e qq($r$lib/data/previous-hostname);
  my $set = qq($lib/data/set-hostname);
  put($set, qq({\n "fqdn": "$host.$cluster",\n "hostname": "$host"\n})) if -e $r . $set;
}

# Every file that names the old one. All names are replaced in one pass, so that none is replaced twice.
my %to;
sub also { my ($from, $into) = @_; $to{lc $from} = $into if length $from && length $into && !exists $to{lc $from} }
also($was_mac, $mac); also($was_mac =~ s/://gr, $mac =~ s/://gr);
also(qq($was_ip/$d{old_prefix}), qq($ip/$d{new_prefix})); also($was_ip, $ip);
also($d{old_gateway}, $d{new_gateway});
my @dns = split / /, $d{new_dns}; my $i = 0;
also($_, $dns[$i++] // $dns[-1]) for split / /, $d{old_dns};
also($was_iid, $iid); also($was_id, $id);
also(qq($was_host.$d{old_cluster}), qq($host.$cluster)); also(qq("$was_host"), qq("$host"));
sub rewrite {
  my $any = join q(|), map quotemeta, sort { length $b <=> length $a } keys %to;
  for my $f (@_) {
    next if !-f $r . $f || -l $r . $f || -s _ > 1e6;
    my $t = get($f); my $was = $t;
    $t =~ s/((?<![\w.:-])|(?<=enx))($any)(?![\w:-]|\.\w)/$to{lc $2}/gi;
    $t =~ s/^DNS=.*$/DNS=$d{new_dns}/m;
    put($f, $t) if $t ne $was;
  }
}
step(q(files), sub {
  my @ours = map names($_), q(/run/cloud-init), qq($lib/data), qq($lib/instances/$iid);
  rewrite(@ours, q(/etc/mailname), grep m(/n\d+$), names(q(/run/udev/data)));
  also($d{old_cluster}, $cluster);
  my @net = map names($_), qw(/etc/systemd/network /run/systemd/network /etc/netplan /run/netplan);
  push @net, map names($_), grep -d $r . $_, @net;
  push @net, map names($_), qw(/etc/network/interfaces.d /etc/udev/rules.d /run/systemd/netif/links
    /etc/NetworkManager/system-connections /run/NetworkManager/system-connections /etc/sysconfig/network-scripts);
  rewrite(@net, q(/etc/network/interfaces), q(/run/systemd/netif/state));
  if (@dns && -e $r . q(/etc/resolv.conf) && !-l $r . q(/etc/resolv.conf)) {
    put(q(/etc/resolv.conf), join q(), qq(search $cluster\n), map qq(nameserver $_\n), @dns);
  }
  # What DHCP clients tell a server who they are by.
  unlink map qq($r$_), map(names($_), qw(/var/lib/dhcp /var/lib/dhcpcd)), q(/var/lib/NetworkManager/secret_key);
  my $f = q(/etc/iscsi/initiatorname.iscsi); my $t = get($f) // q(); my $part = substr $id, 0, 12;
  put($f, $t) if $t =~ s/^(InitiatorName=\S*:)[0-9a-f]{8,}$/$1$part/m;
});

sub ll {
  my @o = map hex, split /:/, $_[0]; $o[0] ^= 2;
  pack q(H16C8), q(fe80) . 0 x 12, @o[0 .. 2], 255, 254, @o[3 .. 5];
}
sub v4 { pack q(C4), split /\./, $_[0] }
sub attr { my ($type, $v) = @_; pack q(SSa*x![4]), 4 + length $v, $type, $v }
my $sock; my $seq = 0;
sub ask {
  my ($type, $flags, $body, @fine) = @_;
  send $sock, pack(q(LSSLLa*), 16 + length $body, $type, 5 | $flags, ++$seq, 0, $body), 0 or die qq(netlink: $!\n);
  recv $sock, my $answer, 8192, 0; my ($kind, $error) = unpack q(x4Sx10l), $answer;
  die qq(netlink: no answer\n) if $kind != 2;
  $! = -$error; die qq(netlink $type: $!\n) if $error && !grep { $_ == -$error } @fine;
}
my $awake = -l $r . q(/run/systemd/units/invocation:systemd-networkd.service);
sub network {
  my ($if) = grep { (get(qq($_/address)) // q()) =~ /^(?:\Q$was_mac\E|\Q$mac\E)$/im } names(q(/sys/class/net));
  die qq(no interface has the address $was_mac\n) unless $if;
  my $index = get(qq($if/ifindex)) + 0;
  socket $sock, 16, 3, 0 or die qq($!\n);
  my $both = sub { my ($family, $length, $flags, $a) = @_; pack(q(CCCCL), $family, $length, $flags, 0, $index)
    . attr(2, $a) . attr(1, $a) };
  ask(19, 0, pack(q(CCSlLL), 0, 0, 0, $index, 0, 0) . attr(1, pack q(H12), $mac =~ s/://gr));
  if ($was_ip ne $ip || $d{old_prefix} != $d{new_prefix}) { ask(21, 0, $both->(2, $d{old_prefix}, 0, v4($was_ip)), 99) }
  my $wide = unpack(q(N), v4($ip)) | 0xffffffff >> $d{new_prefix};
  ask(20, 0x500, $both->(2, $d{new_prefix}, 0, v4($ip)) . attr(4, pack q(N), $wide));
  if ($d{new_gateway}) {
    my $via = attr(5, v4($d{new_gateway})) . attr(4, pack q(L), $index);
    ask(24, 0x500, pack(q(C8L), 2, 0, 0, 0, 254, 4, 0, 1, 0) . $via);
  }
  # Its own link-local address carries the MAC. Flag 2: nobody else has it, do not ask around.
  ask(21, 0, $both->(10, 64, 0, ll($was_mac)), 99, 97, 95) if $was_mac ne $mac;
  ask(20, 0x500, $both->(10, 64, 2, ll($mac)), 95, 97, 13);
  # One that was not put to sleep would bring the old address back, and tells resolved of the old nameserver.
  system qw(systemctl restart systemd-networkd.service) if $awake && !$r;
}
step(q(network), \&network) unless $d{ssh};

my $said = @bad ? join q( ), map { s/\s+/ /gr } @bad : q(ok);
print qq(\nfleetbox:$nonce:$said\n);
if ($d{ssh}) {
  # The session stands on the address that goes: it must have ended first.
  exit(@bad ? 1 : 0) if fork; close STDIN; close STDOUT; close STDERR;
  for (1 .. 200) {
    last if (get(q(/proc/net/tcp6)) // q()) !~ /^ *\d+: 000080FE\S*:0016 \S+ 01/m;
    select undef, undef, undef, 0.02;
  }
  eval { network() };
}

# What nobody waits for. The next boot's randomness:
step(q(seed), sub {
  my $f = q(/var/lib/systemd/random-seed);
  if (-e $r . $f) { open my $u, q(<), q(/dev/urandom) or die qq($!\n); sysread $u, my $s, 512; put($f, $s, 0600) }
});
# Then the disk, so that a machine that dies now is itself when it starts again; then those who keep the old machine-id
# or addresses in their memory, but not at once, as the first command wants the processor.
exit(@bad ? 1 : 0) if $r;
syscall $nr_sync; sleep $d{pause_s}; setpriority 0, 0, 19;
my @units = q(systemd-journald.service);
push @units, qw(systemd-networkd.socket systemd-networkd.service) if !$awake && names(q(/run/systemd/netif/links));
for my $f (map names(qq($_/$id)), qw(/var/log/journal /run/log/journal)) { unlink $f }
for my $f (qw(/var/log/cloud-init.log /var/log/cloud-init-output.log)) { truncate $f, 0 if -e $f }
exec q(systemctl), q(--no-block), q(restart), @units if -d q(/run/systemd/system);
"""

_WIDEST_LINE = 2000


def _lines(source: str) -> list[str]:
    """The program without comments, in lines that a terminal takes (under 4 KiB)."""
    lines = [""]
    for text in source.splitlines():
        statement = text.strip()
        if not statement or statement.startswith("#"):
            continue
        if len(lines[-1]) + len(statement) > _WIDEST_LINE:
            lines.append("")
        lines[-1] += f"{statement} "
    return lines


PROGRAM = "\n".join(_lines(_SOURCE))
