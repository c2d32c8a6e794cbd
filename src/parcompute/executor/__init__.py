"""The user's verbs: map and reduce blocks, submit and map calls, joblib's backend, advice."""
