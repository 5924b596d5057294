"""Certified Robustness Transfer: certifiably robust image classifiers at the cost of plain training."""
