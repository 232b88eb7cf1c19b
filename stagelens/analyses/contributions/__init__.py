"""What steps and training examples contributed to one behaviour: asked, computed, kept on disk."""
