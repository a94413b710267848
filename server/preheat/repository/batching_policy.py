"""How requests may be joined, and how they queue: ``dynamic_batching``."""

from dataclasses import dataclass, field
from pathlib import Path

from preheat.errors import InvalidConfig
from preheat.protocol import model_config_pb2 as pb
from preheat.scheduling.queue_policy import QueuePolicies, QueuePolicy

_MAX_WAIT_US = 3_600_000_000
# Each level is looked at for each batch; Triton's examples have two or three.
_MAX_LEVELS = 100


@dataclass(frozen=True, slots=True)
class BatchingPolicy:
    """``dynamic_batching`` of the configuration."""

    preferred_rows: tuple[int, ...] = ()
    max_delay_s: float = 0.0
    queues: QueuePolicies = field(default_factory=QueuePolicies)


def read_batching(proto: pb.ModelConfig, file: Path) -> BatchingPolicy | None:
    """The policy that ``proto``, read from ``file``, asks for; None: requests are not joined. Raises InvalidConfig."""
    if not proto.HasField("dynamic_batching"):
        return None
    where = f"{file}: dynamic_batching"
    if proto.max_batch_size < 1:
        raise InvalidConfig(f"{where}: needs max_batch_size of at least 1, it is {proto.max_batch_size}")
    preferred = tuple(sorted(set(proto.dynamic_batching.preferred_batch_size)))
    for rows in preferred:
        if not 1 <= rows <= proto.max_batch_size:
            raise InvalidConfig(
                f"{where}: preferred_batch_size: {rows}: must be from 1 to max_batch_size, {proto.max_batch_size}"
            )
    delay_us = proto.dynamic_batching.max_queue_delay_microseconds
    return BatchingPolicy(
        preferred,
        _seconds(delay_us, f"{where}: max_queue_delay_microseconds"),
        _queues(proto.dynamic_batching, where),
    )


def _queues(batching: pb.ModelDynamicBatching, where: str) -> QueuePolicies:
    count, default = batching.priority_levels, batching.default_priority_level
    if count > _MAX_LEVELS:
        raise InvalidConfig(f"{where}: priority_levels: {count}: must be at most {_MAX_LEVELS}")
    if count and not 1 <= default <= count:
        raise InvalidConfig(
            f"{where}: default_priority_level: {default}: must be from 1, the highest, to priority_levels, {count}"
        )
    if default and not count:
        raise InvalidConfig(f"{where}: default_priority_level: {default}: set priority_levels too")
    for level in batching.priority_queue_policy:
        if not 1 <= level <= count:
            raise InvalidConfig(
                f"{where}: priority_queue_policy: {level}: must be a level from 1 to priority_levels, {count}"
            )
    usual = _queue(batching.default_queue_policy, f"{where}: default_queue_policy")
    own = {
        level: _queue(policy, f"{where}: priority_queue_policy: {level}")
        for level, policy in batching.priority_queue_policy.items()
    }
    return QueuePolicies(tuple(own.get(level, usual) for level in range(1, max(1, count) + 1)), max(0, default - 1))


def _queue(policy: pb.ModelQueuePolicy, where: str) -> QueuePolicy:
    if policy.timeout_action not in pb.ModelQueuePolicy.TimeoutAction.values():
        raise InvalidConfig(f"{where}: timeout_action: {policy.timeout_action}: must be REJECT or DELAY")
    delays = policy.timeout_action == pb.ModelQueuePolicy.TimeoutAction.DELAY
    timeout_us = policy.default_timeout_microseconds
    if delays and not timeout_us and not policy.allow_timeout_override:
        raise InvalidConfig(
            f"{where}: timeout_action: DELAY: nothing times out; set default_timeout_microseconds, or "
            "allow_timeout_override: true"
        )
    return QueuePolicy(
        max_requests=policy.max_queue_size,
        timeout_s=_seconds(timeout_us, f"{where}: default_timeout_microseconds") if timeout_us else None,
        delays=delays,
        allows_override=policy.allow_timeout_override,
    )


def _seconds(microseconds: int, where: str) -> float:
    if microseconds > _MAX_WAIT_US:
        raise InvalidConfig(f"{where}: {microseconds}: must be at most {_MAX_WAIT_US}, one hour")
    return microseconds / 1e6
