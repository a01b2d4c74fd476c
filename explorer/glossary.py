"""What the numbers of a report mean, each in a line for somebody who has never quantized anything. Text only."""

GLOSSARY = {
    "perplexity_delta": "How much worse it guesses the next word than the original model, on the same text; +0% is no loss.",
    "kld_mean": "How far its guesses for the next word are from the original model's, on average, 0 for no difference. The finest of these measures.",
    "kld_p99": "The same distance on the worst words: one in a hundred is off by more.",
    "top1_agreement": "How often both models think the same next word the most likely one.",
    "perplexity": "Among how many words the model wavers, so to speak, at each next word. Less is better; only comparable on the same text and tokenizer.",
    "bits_per_weight": "What a weight takes in the file, with all that is stored beside the codes; the original has 16 bits.",
    "bits_per_weight_resident": "What a weight takes while the model runs: more than in the file where the kernel needs another form.",
    "weight_bytes": "The memory of all weights, with those that stay in 16 bits.",
    "decode_copies": "Second copies of weights that a kernel keeps to be faster while it writes text.",
    "decode_cache_bytes": "The memory of what the model keeps of the text so far; it grows with the text.",
    "decode_speedup": "How many times as fast as the original model it writes; both were timed in turn in the same run. Above 1 is faster.",
    "first_token_speedup": "The same for the wait until the first token, while the prompt is read.",
    "decode_tokens_per_second": "How many tokens (parts of words) are written a second, for one reader.",
    "decode_latency_p95": "The wait for a token: 95 of 100 come sooner.",
    "time_to_first_token": "The wait until the first token, while the prompt is read.",
    "quantize_seconds": "How long it took to quantize the model, once.",
    "kld_floor": "The distance that 16-bit arithmetic itself makes; smaller ones mean nothing.",
    "kld_median": "The distance on a typical word: half of them are nearer.",
    "kld_max": "The distance on the single worst word.",
    "p_correct_change": "How much more or less probable the model finds the word that really follows; below 0 it got worse.",
    "p_correct_rms": "How much that probability moves, up or down.",
}
CHECKED = (
    "Whether something is broken: infinite outputs, scales of the wrong group, a layer that was never quantized. It does not say how good the result is; the "
    "words below do: at how many bits plain rounding (RTN) of the same model is as good."
)
