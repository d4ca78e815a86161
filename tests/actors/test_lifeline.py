"""A cluster that has died is told from one that answers."""

import socket
from collections.abc import Iterator

import pytest

from raydd.actors.lifeline import ClusterGone, Lifeline


@pytest.fixture
def head() -> Iterator[socket.socket]:
    """Something that listens, as a head does."""
    with socket.create_server(("127.0.0.1", 0)) as listening:
        yield listening


def lifeline(head: socket.socket, nodes: list[dict], patience: float = 30.0) -> Lifeline:
    host, port = head.getsockname()
    return Lifeline("Resume with `x`.", patience, 0.0, f"{host}:{port}", "mine", lambda: nodes)


def test_a_cluster_that_answers(head: socket.socket) -> None:
    lifeline(head, [{"NodeID": "mine", "Alive": True}, {"NodeID": "other", "Alive": False}]).check()


def test_the_node_of_this_process_is_dead(head: socket.socket) -> None:
    with pytest.raises(ClusterGone, match=r"the raylet\) was killed.*Resume with `x`\."):
        lifeline(head, [{"NodeID": "mine", "Alive": False}]).check()


def test_a_head_that_does_not_answer(head: socket.socket) -> None:
    patient, hasty = lifeline(head, []), lifeline(head, [], patience=0.0)
    head.close()
    patient.check()
    with pytest.raises(ClusterGone, match=rf"at {hasty.head} has not answered for 0 s.*--workers=0\. Resume with `x`\."):
        hasty.check()


def test_it_looks_now_and_then(head: socket.socket) -> None:
    looking = lifeline(head, [{"NodeID": "mine", "Alive": False}])
    looking.every = 60.0
    looking.check()
