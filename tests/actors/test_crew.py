import pytest
import ray

from raydd.actors.crew import Call, Crew, State
from raydd.actors.options import WorkerOptions

pytestmark = pytest.mark.usefixtures("ray_cluster")


@ray.remote(num_cpus=0)
class Squaring:
    def ready(self) -> dict[str, str]:
        return {"pid": "1", "host": "here"}

    def call(self, number: int) -> int:
        return number * number


def test_a_worker_that_finds_no_node_is_not_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    """The others do its calls, those too that were meant for it."""
    monkeypatch.setattr("raydd.actors.crew._COMPANY_SECONDS", 0.2)
    ray.cloudpickle.register_pickle_by_value(__import__(__name__, fromlist=["_"]))
    crew = Crew(lambda index: Squaring.options(resources={"nowhere": 1.0} if index else {}).remote(), 2, WorkerOptions())
    try:
        crew.wait_ready()
        assert [slot.state for slot in crew.slots] == [State.LIVE, State.STARTING]
        calls = [Call(number, lambda actor, number=number: actor.call.remote(number), number % 2) for number in range(4)]
        assert sorted(answer.value for answer in crew.run(calls)) == [0, 1, 4, 9]
        assert crew.drain_events() == []
    finally:
        crew.close()
