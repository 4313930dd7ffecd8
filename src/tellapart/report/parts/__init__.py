"""The parts of a report, a module each: what is computed, what of it goes into JSON and onto the page, what to do."""
