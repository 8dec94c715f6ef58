"""Which points each operation goes through when nothing strikes it; a test compares this with what it does."""

REACHED = {
    "up": """
        client.start holder.locked holder.loaded takeover.orphans holder.bound holder.announced client.started
        client.request operation.begin cluster.created cluster.network cluster.connected cluster.placeholders
        client.answered record.write record.written record.replaced cluster.reserved member.create member.folder
        member.lease member.disk member.disk.made member.seed member.hostkey member.seed.made member.launch
        machine.lock machine.attached machine.spawned machine.pidfile member.launched member.recorded
        member.ready member.finished operation.done client.ended
    """,
    "template": """
        client.start holder.locked holder.loaded takeover.orphans holder.bound holder.announced client.started
        client.request operation.begin cluster.created cluster.network cluster.connected template.lock
        member.disk member.disk.made member.seed client.answered member.hostkey member.seed.made template.boot
        machine.lock machine.attached machine.spawned machine.pidfile template.booted template.paused
        template.saved disk.copy disk.land template.land template.disk template.landed cluster.placeholders
        record.write record.written record.replaced cluster.reserved member.create member.folder member.lease
        member.launch member.launched member.resume member.resumed member.join member.ready member.finished
        operation.done client.ended
    """,
    "add": """
        client.request operation.begin cluster.placeholders record.write client.answered record.written
        record.replaced cluster.reserved member.create member.folder member.lease member.disk member.disk.made
        member.seed member.hostkey member.seed.made member.launch machine.lock machine.attached machine.spawned
        machine.pidfile member.launched member.recorded member.ready member.finished operation.done client.ended
    """,
    "clone-template": """
        client.request operation.begin client.answered cluster.placeholders record.write record.written
        record.replaced cluster.reserved member.create member.folder member.lease member.disk member.disk.made
        member.seed member.hostkey member.seed.made member.launch machine.lock machine.attached machine.spawned
        machine.pidfile member.launched member.resume member.resumed member.join member.ready member.finished
        operation.done client.ended
    """,
    "start": """
        client.request operation.begin cluster.placeholders cluster.reserved member.start client.answered
        member.seed member.hostkey member.seed.made member.launch machine.lock machine.attached machine.spawned
        machine.pidfile member.launched record.write record.written record.replaced member.recorded member.ready
        member.finished operation.done client.ended
    """,
    "stop": """
        client.request operation.begin client.answered record.write record.written record.replaced member.stop
        member.stopped cluster.disconnect operation.done holder.ending client.ended holder.silent holder.left
    """,
    "destroy": """
        client.request operation.begin member.destroy client.answered record.write record.written
        record.replaced member.ended member.release member.erase member.erased cluster.abandon
        cluster.disconnect record.remove operation.done holder.ending client.ended holder.silent holder.left
    """,
    "save": """
        client.request operation.begin client.answered save.staged save.announced save.paused save.memory
        disk.copy disk.land save.disk save.resumed save.publish save.land save.landed operation.done
        client.ended
    """,
    "restore": """
        client.job client.job.started operation.begin operation.done client.request client.answered
        restore.check disk.copy disk.land restore.laid restore.paused machine.lock machine.attached
        machine.spawned machine.pidfile restore.up restore.left restore.joined record.write record.written
        record.replaced restore.committed restore.resumed restore.replaced client.ended
    """,
    "clone": """
        client.job client.job.started operation.begin operation.done client.request client.answered record.write
        record.written record.replaced clone.reserved disk.copy disk.land clone.copied member.seed
        member.hostkey member.seed.made member.launch machine.lock machine.attached machine.spawned
        machine.pidfile member.launched member.resume member.resumed member.join clone.made client.ended
    """,
    "clone-cluster": """
        client.job client.job.started operation.begin operation.done client.start holder.locked holder.loaded
        takeover.orphans holder.bound holder.announced client.started client.request client.answered
        cluster.created cluster.network cluster.connected record.write record.written record.replaced
        clone.reserved disk.copy disk.land clone.copied member.seed member.hostkey member.seed.made
        member.launch machine.lock machine.attached machine.spawned machine.pidfile member.launched
        member.resume member.resumed member.join clone.made client.ended
    """,
    "snapshot-rm": """
        client.job client.job.started operation.begin snapshot.remove snapshot.removed operation.done
    """,
    "import": """
        client.job client.job.started operation.begin image.lock image.staged image.converted image.publish
        record.write record.written record.replaced operation.done
    """,
    "pull": """
        client.job client.job.started operation.begin image.lock image.download image.downloaded image.staged
        image.converted image.publish image.published operation.done
    """,
    "prune": """
        client.job client.job.started operation.begin prune.cluster member.erase member.erased prune.erased
        record.write record.written record.replaced record.remove prune.gone prune.network operation.done
    """,
    "takeover": """
        client.start holder.locked holder.loaded takeover.orphans takeover.rollback member.erase member.erased
        cluster.network cluster.connected takeover.network takeover.adopt takeover.adopted takeover.commit
        record.write record.written record.replaced holder.bound holder.announced client.started client.request
        operation.begin operation.done client.answered client.ended
    """,
}
"""Each operation's points, in about their order."""

STRUCK = {
    "up": """
        client.start holder.locked holder.loaded holder.bound holder.announced client.started client.request
        operation.begin cluster.created cluster.network cluster.connected cluster.placeholders client.answered
        record.write record.replaced cluster.reserved member.create member.launched member.ready operation.done
        client.ended
    """,
    "template": """
        template.lock template.boot template.booted template.paused template.saved template.land template.disk
        template.landed member.resume
    """,
    "add": """
        client.answered record.write record.written record.replaced cluster.reserved member.folder member.lease
        member.disk member.disk.made member.seed member.hostkey member.seed.made member.launch machine.lock
        machine.attached machine.spawned machine.pidfile member.launched member.recorded member.ready
        member.finished
    """,
    "clone-template": "member.disk.made member.launched member.resume member.resumed member.join member.ready",
    "start": "member.start member.seed machine.spawned member.launched member.recorded member.ready",
    "stop": """
        record.write member.stop member.stopped cluster.disconnect operation.done holder.ending holder.silent
        holder.left
    """,
    "destroy": """
        member.destroy member.ended member.release member.erase member.erased cluster.abandon record.remove
        cluster.disconnect holder.left
    """,
    "save": """
        save.staged save.announced save.paused save.memory disk.copy disk.land save.disk save.resumed save.publish
        save.land save.landed
    """,
    "restore": """
        restore.check disk.copy restore.laid restore.paused machine.spawned restore.up restore.left restore.joined
        record.write record.written record.replaced restore.committed restore.resumed restore.replaced
    """,
    "clone": """
        clone.reserved disk.copy clone.copied member.seed member.launched member.resume member.resumed member.join
        clone.made
    """,
    "clone-cluster": "cluster.connected clone.reserved clone.copied member.launched clone.made",
    "snapshot-rm": "client.job client.job.started snapshot.remove snapshot.removed operation.done",
    "import": "client.job.started image.lock image.staged image.converted image.publish record.write",
    "pull": "image.download image.downloaded image.converted image.publish image.published",
    "prune": "prune.cluster member.erase member.erased prune.erased record.remove prune.gone prune.network",
    "takeover": """
        holder.locked takeover.orphans takeover.rollback member.erased takeover.network takeover.adopt
        takeover.adopted takeover.commit holder.bound holder.announced
    """,
}
"""The points where each operation is struck; what several go through alike is not struck in all of them."""

NETWORK_ONLY = {
    "network.journal", "network.bridge", "network.forwarding", "network.table", "network.rules", "network.resolver",
    "network.built", "network.tap", "network.tap.made", "network.detach", "network.demolish", "network.demolished",
    "template.remove", "template.removed",
}  # fmt: skip
"""Points that the fake backend never comes to: struck in the host network's own tests and on real machines."""
