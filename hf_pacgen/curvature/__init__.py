"""Hessian-vector products and what is estimated from them."""
