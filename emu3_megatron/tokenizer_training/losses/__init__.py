"""What the tokenizer is trained to minimise, besides the discriminators' judgement."""
