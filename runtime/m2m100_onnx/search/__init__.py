"""From scores to tokens, with numpy alone."""
