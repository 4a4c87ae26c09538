"""Networks: building them, loading their weights, deciding what trains."""
