"""From a winner to a larger model trained on text: plan, training, evidence."""
