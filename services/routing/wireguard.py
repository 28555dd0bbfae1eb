"""The WireGuard of this node: its keys, devices and peers, brought to what the mesh says; one pass at a time.

Decides nothing itself: ``core.wireguard`` says which slots, peers and steps, this reads and does it. Keys are in a file
before anybody is told of them, devices are marked last. A pass that fails half way loses nothing: what is there stays,
the next pass goes on from what it finds. Memory is kept of one thing alone, since when nothing has come by a slot that
is being left; a restarted agent waits anew.

Blocking; every call comes from the one thread in the node's network namespace that made the devices' netlink socket.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import replace
from zlib import crc32

from kit.models import LEAST_MTU, WIREGUARD
from linux.wireguard import Change, Device
from proto.net import Address
from proto.routes import NodeRoutes, WireguardKey
from services.routing.core.faults import Fault
from services.routing.core.wireguard import (
    DRAIN,
    FIRST,
    SLOTS,
    OwnKeys,
    PeerStep,
    Remote,
    WireguardState,
    Wish,
    best_slot,
    holders,
    networks_of_nodes,
    next_step,
    peer_steps,
    proved_keys,
    remotes,
    shown,
    slot_now,
    wanted_peers,
)
from services.routing.wireguard_device import CannotHave, Devices, peer_change
from services.routing.wireguard_keys import KeyFile, KeysBroken, PrivateKeys, first_keys

DAY = 86400


class Wireguard:
    """See the module."""

    def __init__(
        self, keys: KeyFile, devices: Devices, *, name: str = "", key_days: int = 0, drain: float = DRAIN
    ) -> None:
        """``name``: under which this node, or gateway, speaks in ``routes``; ``key_days``: the age at which the key is
        changed, 0: never by itself.
        """
        self._name = name
        self._file = keys
        self._devices = devices
        self._drain = drain
        self._key_days = key_days
        self._keys: PrivateKeys | None = None
        self._quiet: tuple[int, int, float] | None = None
        """Slot that is not home, bytes received by it, and since when they are as many."""
        self._met: dict[tuple[int, bytes], float] = {}
        """When peers that are to speak first were made."""
        self._drained = False
        """Nothing comes or goes by that slot any more."""
        self.state = WireguardState()
        """As of the last pass."""

    def run(self, wish: Wish, *, now: float, clock: float) -> WireguardState:
        """One pass; ``now`` in Unix seconds, ``clock`` in seconds that do not go back. Raises nothing: a failure is
        the state's fault, and what is still there of the state before stays in it.
        """
        wish = replace(wish, known=replace(wish.known, me=self._name or wish.known.me))
        try:
            self.state = self._run(wish, now, clock)
        except CannotHave as cannot:
            self.state = self._kept(Fault(cannot.fault, cannot.remedy))
        except OSError as error:
            self.state = self._kept(Fault(f"WireGuard: {error}", "look at `ip link show am-wg`; it is tried again"))
        return self.state

    def _kept(self, fault: Fault) -> WireguardState:
        before = self.state
        there = {slot: self._devices.link(slot) for slot in before.links}
        links = {slot: link.index for slot, link in there.items() if link is not None and link.up}
        mine = tuple(key for key in before.mine if key.slot in links)
        return replace(before, mine=mine, links=links, faults=(fault,), fault=None if links else fault)

    def _run(self, wish: Wish, now: float, clock: float) -> WireguardState:
        faults: list[Fault] = []
        keys = self._load(now, faults)
        own = keys.public
        in_use = not self._drained and self._devices.link(own.other) is not None
        mine = shown(own, _others(wish), wish.port, in_use=in_use)
        devices = {key.slot: self._devices.make(key.slot) for key in mine}
        networks = networks_of_nodes(wish.known)
        held = holders({slot: device.peers for slot, device in devices.items()}, networks)
        found, refused = remotes(wish.known, own, held)
        faults += refused
        best = {name: best_slot(wish.known.me, mine, wish.known.routes[name]) for name in found}
        outer = {name: remote.addresses[0] for name, remote in found.items()}
        mtu = max(wish.uplink_mtu - _overhead(outer.values()), LEAST_MTU)
        links = {slot: link.index for slot in devices if (link := self._devices.link(slot)) is not None}
        alive = {slot: proved_keys(device.peers, now) for slot, device in devices.items()}
        slots = _slots(wish, found, best, alive, links)
        for slot, device in devices.items():
            wanted = wanted_peers(slot, found, best, slots, self._new(slot, device, wish.known.me, found, clock))
            steps = peer_steps(wanted, device.peers, now, wish.known)
            self._configure(slot, device, keys.private_of(slot), wish.port + slot, steps)
            self._devices.mark(slot, mtu, wish.local[0], wish.port + slot)
        self._drained = self._look(own.other, wish, devices, slots, clock)
        self._go_on(wish, own, mine, now, faults)
        self._sweep(wish, links)
        return WireguardState(
            mine=mine,
            links=links,
            mtu=mtu,
            slots=slots,
            outer=outer,
            proved=_proved(found, alive),
            begins=bool(self._met),
            faults=tuple(faults),
        )

    def _load(self, now: float, faults: list[Fault]) -> PrivateKeys:
        """The keys: of the file, else made and written. What cannot be written is used all the same, and told."""
        try:
            keys = self._file.load()
        except KeysBroken as broken:
            faults.append(Fault(f"{broken}; a new key is made", "see who wrote to it"))
            keys = None
        if keys is None and self._keys is None:
            devices = {slot: self._devices.read(slot) for slot in SLOTS}
            running = {
                slot: device.private_key for slot, device in devices.items() if device and any(device.private_key)
            }
            keys = first_keys(running, now)
            self._write(keys, faults)
        elif keys is None and self._keys is not None:
            # Somebody has deleted it: what is in use becomes the key to be left.
            keys = self._keys.begun()
            self._write(keys, faults)
        assert keys is not None
        self._keys = keys
        return keys

    def _write(self, keys: PrivateKeys, faults: list[Fault]) -> None:
        try:
            self._file.save(keys)
        except OSError as error:
            faults.append(
                Fault(
                    f"the WireGuard keys cannot be written to {self._file.path}: {error.strerror}",
                    "make room there, or correct AIRMESH_STATE_DIR; until then no key is changed",
                )
            )

    def _configure(self, slot: int, device: Device, private: bytes, port: int, steps: tuple[PeerStep, ...]) -> None:
        change = Change(
            private_key=None if device.private_key == private else private,
            port=None if device.port == port else port,
            peers=tuple(peer_change(step) for step in steps),
        )
        if change != Change():
            self._devices.configure(slot, change)

    def _go_on(self, wish: Wish, own: OwnKeys, mine: tuple[WireguardKey, ...], now: float, faults: list[Fault]) -> None:
        """The next step of a change of the key, if there is one; the next pass sees what it brought."""
        assert self._keys is not None
        days = self._key_days
        due = days > 0 and now - own.made > days * DAY + _spread(wish.known.me, days)
        step = next_step(own, mine, due=due, drained=self._drained)
        if step == "stay":
            return
        keys = self._keys
        changed = keys.begun() if step == "begin" else keys.moved(now) if step == "make" else keys.left()
        self._write(changed, faults)

    def _look(
        self, slot: int, wish: Wish, devices: Mapping[int, Device], slots: Mapping[str, int], clock: float
    ) -> bool:
        """Whether nothing has come or gone by a slot for so long that nothing will: a peer that takes it for the best
        one, be its agent dead, would have sent a keepalive.
        """
        device = devices.get(slot)
        link = self._devices.link(slot)
        leads = link is not None and any(link.index in interfaces for interfaces in wish.taken.values())
        if device is None or leads or slot in slots.values():
            self._quiet = None
            return device is None and not leads
        received = sum(peer.received for peer in device.peers)
        if self._quiet is None or self._quiet[:2] != (slot, received):
            self._quiet = slot, received, clock
        return clock - self._quiet[2] >= self._drain

    def _new(self, slot: int, device: Device, me: str, found: Mapping[str, Remote], clock: float) -> frozenset[bytes]:
        """Keys of a device's peers that are to speak first, as long as that is waited for."""
        there = {peer.public_key for peer in device.peers}
        keys = {remote.keys[slot][0] for remote in found.values() if slot in remote.keys and remote.node < me}
        for key in keys - there:
            self._met[slot, key] = clock
        self._met = {
            at: met for at, met in self._met.items() if clock - met < FIRST and (at[0] != slot or at[1] in keys)
        }
        return frozenset(key for at, key in self._met if at == slot)

    def _sweep(self, wish: Wish, links: Mapping[int, int]) -> None:
        """Takes away the device of a slot that this node does not show any more, when no route leads out by it."""
        for slot in SLOTS:
            if slot in links or (link := self._devices.link(slot)) is None:
                continue
            if not any(link.index in interfaces for interfaces in wish.taken.values()):
                self._devices.remove(slot)


def _others(wish: Wish) -> list[NodeRoutes]:
    return [routes for name, routes in wish.known.routes.items() if name != wish.known.me]


def _slots(
    wish: Wish,
    found: Mapping[str, Remote],
    best: Mapping[str, int | None],
    alive: Mapping[int, Collection[bytes]],
    links: Mapping[int, int],
) -> dict[str, int]:
    """The slot that packets to each node take."""
    slots: dict[str, int] = {}
    for name, remote in found.items():
        shared = {slot for slot in links if slot in remote.keys}
        proved = {slot for slot in shared if remote.keys[slot][0] in alive[slot]}
        current = next((slot for slot in sorted(links) if links[slot] in wish.taken.get(name, ())), None)
        if (slot := slot_now(best[name], current, proved, shared)) is not None and slot in shared:
            slots[name] = slot
    return slots


def _proved(found: Mapping[str, Remote], alive: Mapping[int, Collection[bytes]]) -> frozenset[str]:
    return frozenset(
        name
        for name, remote in found.items()
        if any(remote.keys[slot][0] in keys for slot, keys in alive.items() if slot in remote.keys)
    )


def _overhead(addresses: Collection[Address]) -> int:
    """The most that WireGuard adds to a packet to any of these addresses."""
    return max((WIREGUARD.overhead[address.version] for address in addresses), default=WIREGUARD.overhead[4])


def _spread(node: str, days: int) -> int:
    """Seconds by which a node changes its key later than another: a tenth of the age, so that not all do at once."""
    return crc32(node.encode()) % (days * DAY // 10)
