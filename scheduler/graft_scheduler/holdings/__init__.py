"""What hosts hold of models, and what they are asked to hold: wishes that their workers carry out."""
