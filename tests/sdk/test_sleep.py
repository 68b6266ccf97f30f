"""A real server sleeps, says so to OpenAI's client, and answers as before when it is awake again."""

import openai
import pytest

from tests.sdk.conftest import SQL_OPTIONS, serving

PROMPT = "CREATE TABLE singers (id INTEGER, name TEXT); How many singers are there?"


def test_a_server_sleeps_and_wakes_up() -> None:
    with serving({**SQL_OPTIONS, "enable_sleep_mode": True}) as server, server.client() as client:

        def ask() -> str:
            answer = client.completions.create(model="default_model", prompt=PROMPT, temperature=0, max_tokens=24)
            return answer.choices[0].text

        expected = ask()
        for level in (1, 2):
            assert server.http.post(f"/sleep?level={level}").json() == {"is_sleeping": True}
            with pytest.raises(openai.InternalServerError, match="engine sleeps") as refused:
                client.completions.create(model="default_model", prompt=PROMPT)
            assert (refused.value.status_code, refused.value.code) == (503, "engine_asleep")
            assert server.http.post("/wake_up").json() == {"is_sleeping": False}
            assert ask() == expected
