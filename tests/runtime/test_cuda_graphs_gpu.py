"""`cuda_graphs=True` on a GPU: the same outputs and decisions as without, bit for bit, by the real
capture. What `test_cuda_graphs` asks of the logic is asked over a stand-in."""

import gc
import threading

import pytest
import torch

import dit_cachegraph as dc
from dit_cachegraph.cuda_graphs.cuda_capturer import CudaCapturer
from support.toy_dits import TwoListDiT
from support.toy_runs import toy_steps

TIMES = [90.0, 80.0, 70.0, 60.0, 50.0, 40.0, 30.0, 20.0]
pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no GPU"),
]


@pytest.fixture(autouse=True)
def fresh_dynamo():
    """Each test has a driver of its own."""
    torch._dynamo.reset()
    yield
    torch._dynamo.reset()


@pytest.fixture
def capturer():
    return CudaCapturer(torch.device("cuda", torch.cuda.current_device()))


def steps_on_gpu():
    return [{name: t.cuda() for name, t in inputs.items()} for inputs in toy_steps(TIMES)]


def compiled_on_gpu(**options):
    settings = {"rule": "dbcache", "Fn_compute_blocks": 1, "max_warmup_steps": 0}
    settings |= {"residual_diff_threshold": 0.3, **options}
    model = TwoListDiT(2, 4).cuda().requires_grad_(False)
    return model, torch.compile(model, backend="cachedit", options=settings)


@torch.no_grad()
def drawn(compiled):
    steps = steps_on_gpu()
    # One text for all of them: it is what tells the request.
    text = steps[0]["encoder_hidden_states"]
    return [compiled(**{**inputs, "encoder_hidden_states": text}) for inputs in steps]


def hits(model):
    return [step.hit for step in dc.summary(model).steps]


def graph_lines(model):
    return dc.summary(model).graphs[-1].cuda_graphs


@pytest.mark.parametrize("inner_backend", ["eager", "inductor"])
def test_outputs_and_decisions_are_those_without(inner_backend):
    model, plain = compiled_on_gpu(inner_backend=inner_backend)
    expected, expected_hits = drawn(plain), hits(model)
    assert any(expected_hits)
    model, graphed = compiled_on_gpu(inner_backend=inner_backend, cuda_graphs=True)
    outputs = drawn(graphed)
    assert hits(model) == expected_hits
    for output, wanted in zip(outputs, expected, strict=True):
        assert torch.equal(output, wanted)
    (told,) = graph_lines(model)
    assert told.startswith("4 CUDA graphs")


def test_weights_that_moved_turn_it_off():
    model, graphed = compiled_on_gpu(cuda_graphs=True)
    before = drawn(graphed)
    model.cpu().cuda()
    gc.collect()
    weight = model.blocks[1].image.weight
    weight.data = weight.data.clone()
    dc.reset(model)
    for output, wanted in zip(drawn(graphed), before, strict=True):
        assert torch.equal(output, wanted)
    (told,) = graph_lines(model)
    assert told.startswith("CUDA graphs are off: weights of ")


def test_two_threads_on_two_streams():
    model, graphed = compiled_on_gpu(cuda_graphs=True)
    expected, outputs = drawn(graphed), [[], []]
    dc.reset(model)

    def draw(which):
        with torch.cuda.stream(torch.cuda.Stream()), dc.request(f"image {which}"):
            for _ in range(20):
                outputs[which] = drawn(graphed)
                dc.reset(model, f"image {which}")
            torch.cuda.current_stream().synchronize()

    threads = [threading.Thread(target=draw, args=(which,)) for which in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for own in outputs:
        for output, wanted in zip(own, expected, strict=True):
            assert torch.equal(output, wanted)


def test_a_capture_that_reads_a_number_fails_and_the_next_one_does_not(capturer):
    x, out = torch.ones(1000, device="cuda"), torch.zeros(1000, device="cuda")

    def reads():
        out.copy_(x * x.sum().item())

    def adds():
        out.copy_(x * 2 + 1)

    with capturer.in_turn():
        for run in (reads, adds):
            capturer.warm_up(run)
        with pytest.raises(RuntimeError, match="captur"):
            capturer.capture(reads)
        graph = capturer.capture(adds)
        out.zero_()
        x.fill_(3.0)
        graph.replay()
    assert torch.cuda.current_stream() == torch.cuda.default_stream()
    assert out.eq(7.0).all()
    # The allocator isn't left in a capture: memory that streams share is freed as ever.
    side, before = torch.cuda.Stream(), torch.cuda.memory_allocated()
    shared = torch.ones(10_000, device="cuda")
    shared.record_stream(side)
    del shared
    torch.cuda.synchronize()
    torch.ones(1, device="cuda")
    assert torch.cuda.memory_allocated() <= before + 1024
    # Nor is the generator.
    drawn = [torch.rand(8, device="cuda") for _ in range(2)]
    assert not torch.equal(*drawn)


def test_graphs_share_their_pool(capturer):
    """Nothing of one is read after another's replay, so that many take hardly more than one."""
    x, out = torch.ones(4, 2**20, device="cuda"), torch.zeros(4, 2**20, device="cuda")

    def run():
        out.copy_((x * 2 + 1).relu().mul(3))

    graphs, reserved = [], []
    with capturer.in_turn():
        capturer.warm_up(run)
        for _ in range(6):
            graphs.append(capturer.capture(run))
            reserved.append(torch.cuda.memory_reserved())
        for graph in graphs:
            out.zero_()
            graph.replay()
            assert out.eq(9.0).all()
    assert reserved[-1] <= reserved[0] + 2**22
    graphs[0].release()
    with capturer.in_turn():
        out.zero_()
        graphs[1].replay()
    assert out.eq(9.0).all()
