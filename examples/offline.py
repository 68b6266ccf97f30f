"""Several requests at once, each with its own sampling: python examples/offline.py [checkpoint]"""

import sys

from lightvllm import LLM, SamplingParams
from lightvllm.config import DEFAULT_MODEL

SCHEMA = "cities: id int key, name text, country text, population int"
QUESTIONS = ["How many cities are there?", "Which cities are in Norway?", "What is the largest population?"]

with LLM(sys.argv[1] if len(sys.argv) > 1 else DEFAULT_MODEL, max_model_len=512) as llm:
    conversations = [
        [{"role": "system", "content": SCHEMA}, {"role": "user", "content": question}] for question in QUESTIONS
    ]
    params = [
        SamplingParams(temperature=0, max_tokens=40),
        SamplingParams(temperature=0.7, top_p=0.9, seed=1, n=2, max_tokens=40),
        SamplingParams(temperature=0, logprobs=2, max_tokens=40),
    ]
    for question, output in zip(QUESTIONS, llm.chat(conversations, params, use_tqdm=False), strict=True):
        print(question)
        for completion in output.outputs:
            print(f"  {completion.text!r} ({completion.finish_reason}, {len(completion.token_ids)} tokens)")
            for entry in (completion.logprobs or [])[:3]:
                print("   ", {logprob.decoded_token: round(logprob.logprob, 3) for logprob in entry.values()})
    print(llm.get_metrics())
