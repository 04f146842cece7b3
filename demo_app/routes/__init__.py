"""The shop's routes, one router a file; this tuple is all the service mounts."""

from demo_app.routes import faults, health, live, orders, products, reports

ROUTERS = (
    health.router,
    products.router,
    orders.router,
    reports.router,
    live.router,
    faults.router,
)
