"""Input-reconstruction attackers, the features they read and the scores they get."""
