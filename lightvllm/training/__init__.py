"""How the default model is made: a generator of questions with their SQL, a tokenizer, a trainer, export, evaluation.

`python -m lightvllm.training` takes all the steps; `recipe.py` has every number.
"""
