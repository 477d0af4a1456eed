"""What the paper shows beside its tables: where networks look, how near perturbations come to triggers, Lemma 1."""
