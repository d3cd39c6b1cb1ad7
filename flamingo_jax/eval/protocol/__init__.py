"""How benchmarks are asked: prompts, shots, decoding and what becomes of an answer.

    protocol = presets.find("openflamingo")
    chosen = splits.choose(benchmark, protocol, split="test", seed=42)
    asker = Asker(protocol, benchmark, chosen, seed=42)
    how = protocol.generation(benchmark)
    for query in chosen.queries:
        [prompt] = asker.prompts(query, shots=4)  # several with prompt ensembling
        [answer] = flamingo.generate([prompt.parts], **dataclasses.asdict(how))
        print(protocol.cleaner(benchmark).clean(answer))

`presets` are the published protocols, `templates` their texts, `splits` which examples are used,
`shots` which of them a query is shown, `prompts` lays them out, `answers` cleans what comes back.
A prompt depends on (seed, trial, query) alone, never on the order in which queries are asked.
"""
