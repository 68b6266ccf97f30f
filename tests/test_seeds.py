"""Seeds of children and of requests without one: different, repeatable, valid as seeds."""

from lightvllm.seeds import child_seed, mix64, request_seed


def test_mix64_is_splitmix64():
    # The first outputs of the published generator for the seed 1234567.
    state, outputs = 1234567, []
    for _ in range(3):
        state += 0x9E3779B97F4A7C15
        outputs.append(mix64(state))
    assert outputs == [6457827717110365317, 3203168211198807973, 9817491932198370423]


def test_first_child_keeps_the_seed_and_all_differ():
    seeds = [child_seed(seed, index) for seed in (0, 1, -1, 2**63 - 1) for index in range(100)]
    assert [child_seed(seed, 0) for seed in (0, 1, -1)] == [0, 1, -1]
    assert len(set(seeds)) == len(seeds)
    assert all(-(2**63) <= seed < 2**63 for seed in seeds)


def test_request_seeds_differ_between_engines_requests_and_children():
    seeds = [request_seed(engine_seed, counter) for engine_seed in (0, 1, -5) for counter in range(100)]
    seeds += [child_seed(seed, index) for seed in (0, 1, -5) for index in range(100)]
    assert len(set(seeds)) == len(seeds)
    assert all(-(2**63) <= seed < 2**63 for seed in seeds)
    assert request_seed(7, 3) == request_seed(7, 3)
