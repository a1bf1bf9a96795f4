"""Rules for bad days, without a network: when to retry, when to stop asking, how many at once, whom to share with."""
