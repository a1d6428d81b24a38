"""What a request may ask: job specs, family parameters, recipes. JSON schemas come from here."""
