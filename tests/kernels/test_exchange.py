"""Communication over a process group and among simulated ranks: one contract, one behaviour."""

import pytest
import torch
import torch.distributed as dist
from emu3_kernels.exchange import GroupExchange, NoExchange
from support.processes import run_processes
from support.simulated_ranks import simulate

RANKS = 3


def messages(exchange):
    """What a rank receives from its left neighbour; only even ranks send anything."""
    left, right = (exchange.rank - 1) % RANKS, (exchange.rank + 1) % RANKS
    outgoing = torch.full((2 if exchange.rank % 2 == 0 else 0,), float(exchange.rank))
    incoming = torch.full((2 if left % 2 == 0 else 0,), -1.0)
    wait = exchange.send_receive(outgoing, right, incoming, left)
    wait()
    outgoing.fill_(-2.0)  # it may be used again
    return incoming


def results(exchange):
    own = torch.arange(2.0 * RANKS) + 10 * exchange.rank
    return [
        exchange.all_gather(own)(),
        exchange.gather_tokens(own[:, None])(),
        exchange.sum_tokens(own[:, None].clone())(),
        messages(exchange),
    ]


def results_of_a_process(tokens_divided):
    dist.init_process_group("gloo")
    exchange = GroupExchange(dist.group.WORLD, tokens_divided=tokens_divided, point_to_point=True)
    found = [tensor.numpy() for tensor in results(exchange)]
    dist.destroy_process_group()
    return found


@pytest.mark.parametrize("tokens_divided", [False, True], ids=["tokens whole", "tokens divided"])
def test_simulated_ranks_communicate_as_processes_do(tokens_divided):
    processes = run_processes(results_of_a_process, RANKS, tokens_divided)

    simulated = simulate(RANKS, results, tokens_divided=tokens_divided)

    for found, expected in zip(simulated, processes, strict=True):
        for tensor, array in zip(found, expected, strict=True):
            assert torch.equal(tensor, torch.from_numpy(array))
    own = torch.arange(2.0 * RANKS)
    gathered, _, total, received = simulated[1]
    assert torch.equal(gathered, torch.stack([own, own + 10, own + 20]))
    assert torch.equal(total[:, 0], (3 * own + 30).chunk(3)[1] if tokens_divided else 3 * own + 30)
    assert received.tolist() == [0.0, 0.0]


def test_one_rank_keeps_what_it_has():
    own = torch.arange(3.0)

    assert torch.equal(NoExchange().all_gather(own)(), own[None])
    assert NoExchange().gather_tokens(own)() is own
    assert NoExchange().sum_tokens(own)() is own
    with pytest.raises(AssertionError, match="no other to send to"):
        NoExchange().send_receive(own, 0, own, 0)


@pytest.mark.parametrize(
    "wait_for_others",
    [
        lambda exchange: exchange.all_gather(torch.zeros(1))(),
        lambda exchange: exchange.send_receive(torch.zeros(0), 1, torch.zeros(1), 1)(),
    ],
    ids=["collective", "message"],
)
def test_a_simulated_rank_that_fails_stops_the_others(wait_for_others):
    def function(exchange):
        if exchange.rank == 1:
            raise RuntimeError("rank 1 is broken")
        wait_for_others(exchange)

    with pytest.raises(RuntimeError, match="rank 1 is broken"):
        simulate(4, function)
