"""Curvature of a model's loss: the objective, Hessian-vector products and what is made of them."""
