-- Ingest and fuse of the clinic of benchmarks/raw.py, written by hand for DuckDB: the same rules, the same tables.
-- {raw} and {out} are folders, {buckets} a number. pseudonyms(who, patient_id) holds one HMAC per different id, as ingest makes them.
-- Statements are separated by lines of dashes.

-- what each kind of record is: plausible range, conversion of the declared unit, place in the file
CREATE TEMP VIEW numbers AS
SELECT who, taken, glucose AS number, unit, 'glucose' AS name, 'clinic.cgm' AS source, 20.0 AS low, 600.0 AS high,
    CASE unit WHEN 'mg/dL' THEN 1.0 WHEN 'mmol/L' THEN 18.0156 END AS factor, 0.0 AS shift, filename, file_row_number + 1 AS line, [1.0, 18.0156] AS meant, [0.0, 0.0] AS moved
FROM read_parquet('{raw}/cgm/*.parquet', filename = true, file_row_number = true)
UNION ALL BY NAME
SELECT who, taken, result AS number, unit, 'hba1c' AS name, 'clinic.labs.a1c' AS source, 3.0 AS low, 20.0 AS high,
    CASE unit WHEN '%' THEN 1.0 WHEN 'mmol/mol' THEN 0.09148 END AS factor, CASE unit WHEN 'mmol/mol' THEN 2.152 ELSE 0.0 END AS shift,
    filename, file_row_number + 1 AS line, [1.0, 0.09148] AS meant, [0.0, 2.152] AS moved
FROM read_parquet('{raw}/labs/*.parquet', filename = true, file_row_number = true) WHERE test = 'a1c'
UNION ALL BY NAME
SELECT who, taken, result AS number, unit, 'body_weight' AS name, 'clinic.labs.weight' AS source, 0.3 AS low, 500.0 AS high,
    CASE unit WHEN 'kg' THEN 1.0 WHEN 'g' THEN 0.001 WHEN 'lb' THEN 0.45359237 END AS factor, 0.0 AS shift,
    filename, file_row_number + 1 AS line, [1.0, 0.001, 0.45359237] AS meant, [0.0, 0.0, 0.0] AS moved
FROM read_parquet('{raw}/labs/*.parquet', filename = true, file_row_number = true) WHERE test = 'weight';
----
CREATE TEMP VIEW events AS
SELECT who, taken, amount AS number, CASE what WHEN 'bolus' THEN 'insulin_bolus' ELSE 'insulin_basal' END AS name,
    'clinic.insulin.' || what AS source, CASE what WHEN 'bolus' THEN 'dose' ELSE 'rate' END AS kind, NULL::VARCHAR AS label,
    what = 'bolus' AS low_open, CASE what WHEN 'bolus' THEN 100.0 ELSE 35.0 END AS high, filename, file_row_number + 1 AS line
FROM read_parquet('{raw}/insulin/*.parquet', filename = true, file_row_number = true)
UNION ALL BY NAME
SELECT who, taken, grams AS number, 'carbohydrate' AS name, 'clinic.meals' AS source, 'dose' AS kind, lower(meal) AS label,
    false AS low_open, 500.0 AS high, filename, file_row_number + 1 AS line
FROM read_parquet('{raw}/meals/*.parquet', filename = true, file_row_number = true);
----
-- patients whose middle value is implausible in the declared unit, but plausible in another one
CREATE TEMP TABLE contradicted AS
WITH counted AS (
    SELECT source, who, unit, count(value) AS n, count_if(value < low) AS below, count_if(value > high) AS above,
        count_if(number * meant[1] + moved[1] < low) AS below_1, count_if(number * meant[1] + moved[1] > high) AS above_1,
        count_if(number * meant[2] + moved[2] < low) AS below_2, count_if(number * meant[2] + moved[2] > high) AS above_2,
        count_if(number * meant[3] + moved[3] < low) AS below_3, count_if(number * meant[3] + moved[3] > high) AS above_3, max(len(meant)) AS units
    FROM (SELECT *, number * factor + shift AS value FROM numbers) GROUP BY source, who, unit
)
SELECT source, who, unit FROM counted
WHERE n >= 5 AND 2 * greatest(below, above) > n AND (2 * greatest(below_1, above_1) < n OR 2 * greatest(below_2, above_2) < n OR units > 2 AND 2 * greatest(below_3, above_3) < n);
----
CREATE TEMP VIEW judged_numbers AS
SELECT *, CASE WHEN who IS NULL THEN 'missing_patient' WHEN taken IS NULL THEN 'missing_time' WHEN back <> taken THEN 'nonexistent_local_time'
        WHEN utc NOT BETWEEN TIMESTAMP '1900-01-01' AND TIMESTAMP '2100-01-01' THEN 'implausible_time' WHEN number IS NULL THEN 'missing_value'
        WHEN value IS NULL THEN 'unknown_unit' WHEN wrong THEN 'unit_contradicts_values' WHEN value < low OR value > high THEN 'out_of_range' END AS reason
FROM (
    SELECT n.*, patient_id, number * factor + shift AS value, timezone('UTC', instant) AS utc, timezone('Europe/London', instant) AS back,
        timezone('Europe/London', instant + INTERVAL 1 HOUR) = taken AS again, c.who IS NOT NULL AS wrong
    FROM (SELECT *, timezone('Europe/London', taken) AS instant FROM numbers) n LEFT JOIN pseudonyms p ON n.who = p.who
        LEFT JOIN contradicted c ON n.who = c.who AND n.source = c.source AND n.unit IS NOT DISTINCT FROM c.unit
);
----
CREATE TEMP VIEW judged_events AS
SELECT *, CASE WHEN who IS NULL THEN 'missing_patient' WHEN taken IS NULL THEN 'missing_time' WHEN back <> taken THEN 'nonexistent_local_time'
        WHEN utc NOT BETWEEN TIMESTAMP '1900-01-01' AND TIMESTAMP '2100-01-01' THEN 'implausible_time' WHEN number IS NULL THEN 'missing_value'
        WHEN number < 0 THEN 'negative_amount' WHEN number > high OR low_open AND number = 0 THEN 'out_of_range' END AS reason
FROM (
    SELECT e.*, patient_id, timezone('UTC', instant) AS utc, timezone('Europe/London', instant) AS back,
        timezone('Europe/London', instant + INTERVAL 1 HOUR) = taken AS again
    FROM (SELECT *, timezone('Europe/London', taken) AS instant FROM events) e LEFT JOIN pseudonyms p ON e.who = p.who
);
----
COPY (
    SELECT source, filename[length('{raw}') + 2:] AS file, line, patient_id, reason, 'see rules' AS detail,
        json_object('who', patient_id, 'taken', taken, 'number', number, 'unit', unit)::VARCHAR AS record FROM judged_numbers WHERE reason IS NOT NULL
    UNION ALL
    SELECT source, filename[length('{raw}') + 2:] AS file, line, patient_id, reason, 'see rules',
        json_object('who', patient_id, 'taken', taken, 'number', number, 'label', label)::VARCHAR FROM judged_events WHERE reason IS NOT NULL
    ORDER BY source, file, line
) TO '{out}/quarantine.parquet' (FORMAT parquet);
----
-- one fact, one row: the first file and line wins; another value at the same instant is a conflict
COPY (
    SELECT hash(patient_id) % {buckets} AS bucket, patient_id, name AS signal, utc AS time, value, date_diff('minute', utc, back)::INTEGER AS utc_offset_minutes, source,
        filename[length('{raw}') + 2:] AS file, line, utc AS available_at,
        list_filter([CASE WHEN again THEN 'ambiguous_local_time' END, CASE WHEN differ THEN 'conflict' END], lambda x: x IS NOT NULL) AS quality
    FROM (
        SELECT *, min(round(value, 6)) OVER facts <> max(round(value, 6)) OVER facts AS differ FROM judged_numbers WHERE reason IS NULL
        WINDOW facts AS (PARTITION BY patient_id, name, utc)
        QUALIFY row_number() OVER (PARTITION BY patient_id, name, utc ORDER BY filename, line) = 1
    ) ORDER BY bucket, patient_id, signal, time
) TO '{out}/observations' (FORMAT parquet, PARTITION_BY (bucket), OVERWRITE);
----
-- of rates the last line wins; foods of one instant add up unless they are equal
COPY (
    SELECT hash(patient_id) % {buckets} AS bucket, patient_id, name AS agent, kind, utc AS start, NULL::TIMESTAMP AS "end", number AS amount, label,
        date_diff('minute', utc, back)::INTEGER AS utc_offset_minutes, source, filename[length('{raw}') + 2:] AS file, line, utc AS available_at,
        list_filter([CASE WHEN again THEN 'ambiguous_local_time' END, CASE WHEN differ AND name = 'carbohydrate' THEN 'same_instant' WHEN differ THEN 'conflict' END],
            lambda x: x IS NOT NULL) AS quality
    FROM (
        SELECT *, min(round(number, 6)) OVER facts <> max(round(number, 6)) OVER facts AS differ FROM judged_events WHERE reason IS NULL
        WINDOW facts AS (PARTITION BY patient_id, name, kind, utc)
        QUALIFY row_number() OVER (PARTITION BY patient_id, name, kind, utc, CASE WHEN name = 'carbohydrate' THEN round(number, 6) END,
            CASE WHEN name = 'carbohydrate' THEN label END ORDER BY filename, CASE WHEN kind = 'rate' THEN -line ELSE line END) = 1
    ) ORDER BY bucket, patient_id, agent, start, source, file, line
) TO '{out}/exposures' (FORMAT parquet, PARTITION_BY (bucket), OVERWRITE);
----
COPY (
    SELECT patient_id, NULL::VARCHAR AS sex, NULL::DATE AS birth_date, list(DISTINCT source ORDER BY source) AS sources
    FROM (SELECT DISTINCT who, source FROM numbers UNION ALL SELECT DISTINCT who, source FROM events) s JOIN pseudonyms p ON s.who = p.who GROUP BY patient_id
) TO '{out}/patients.parquet' (FORMAT parquet);
----
COPY (
    SELECT *, rows_read - accepted - quarantined AS duplicates FROM (
        SELECT source, count(*) AS rows_read FROM (SELECT source FROM numbers UNION ALL SELECT source FROM events) GROUP BY source
    ) LEFT JOIN (
        SELECT source, count(*) AS accepted FROM (SELECT source FROM '{out}/observations/*/*.parquet' UNION ALL SELECT source FROM '{out}/exposures/*/*.parquet') GROUP BY source
    ) USING (source) LEFT JOIN (SELECT source, count(*) AS quarantined FROM '{out}/quarantine.parquet' GROUP BY source) USING (source)
) TO '{out}/ingest_counts.parquet' (FORMAT parquet);
----
-- fuse: blocks of 14 local days from Monday 1970-01-05; the clock of an episode is the offset of its first record
CREATE TEMP TABLE episodes AS
WITH firsts AS (
    SELECT patient_id, epoch_us(time) AS t, utc_offset_minutes::BIGINT AS offset_, true AS reading FROM '{out}/observations/*/*.parquet' WHERE signal = 'glucose'
    UNION ALL SELECT patient_id, epoch_us(start), utc_offset_minutes::BIGINT, false FROM '{out}/exposures/*/*.parquet'
), blocks AS (
    SELECT patient_id, (t + offset_ * 60000000 - 345600000000) // 1209600000000 AS block, arg_min(offset_, t) AS offset_, bool_or(reading) AS has_reading
    FROM firsts GROUP BY ALL
)
SELECT patient_id, block, offset_, 345600000000 + block * 1209600000000 - offset_ * 60000000 AS start FROM blocks WHERE has_reading;
----
CREATE TEMP TABLE readings AS
WITH slots AS (
    SELECT o.patient_id, e.block, ((epoch_us(time) - e.start + 150000000) // 300000000)::INTEGER AS slot, avg(value)::FLOAT AS value
    FROM '{out}/observations/*/*.parquet' o JOIN episodes e ON o.patient_id = e.patient_id
        AND e.block = (epoch_us(time) + utc_offset_minutes::BIGINT * 60000000 - 345600000000) // 1209600000000
    WHERE signal = 'glucose' GROUP BY ALL
), grids AS (SELECT patient_id, block, unnest(range(4032))::INTEGER AS slot FROM episodes)
SELECT g.patient_id, g.block, list(coalesce(value, 'nan'::FLOAT) ORDER BY g.slot) AS values, count(value) AS filled
FROM grids g LEFT JOIN slots s ON g.patient_id = s.patient_id AND g.block = s.block AND g.slot = s.slot GROUP BY g.patient_id, g.block;
----
CREATE TEMP TABLE spans AS
SELECT patient_id, agent, kind, epoch_us(start) AS begin, coalesce(label, '') AS label,
    CASE WHEN kind = 'rate' THEN coalesce(lead(epoch_us(start)) OVER (PARTITION BY patient_id, agent, kind ORDER BY start, amount), epoch_us(start) + 86400000000)
         ELSE epoch_us(start) END AS until,
    CASE WHEN kind = 'rate' THEN amount * (coalesce(lead(epoch_us(start)) OVER (PARTITION BY patient_id, agent, kind ORDER BY start, amount), epoch_us(start) + 86400000000)
         - epoch_us(start)) / 3600000000.0 ELSE amount END AS amount
FROM '{out}/exposures/*/*.parquet';
----
CREATE TEMP TABLE inputs AS
WITH clipped AS (
    SELECT e.patient_id, e.block, agent, greatest(begin, start) AS a, least(until, start + 1209600000000) AS z,
        CASE WHEN until = begin THEN amount ELSE amount * (least(until, start + 1209600000000) - greatest(begin, start)) / (until - begin) END AS amount, label, start
    FROM spans s JOIN episodes e ON s.patient_id = e.patient_id AND begin < start + 1209600000000 AND (until > start OR begin = until AND begin >= start)
), listed AS (
    SELECT patient_id, block, agent, list(((a - start) / 60000000.0)::FLOAT ORDER BY a, amount) AS minutes, list(amount::FLOAT ORDER BY a, amount) AS amounts,
        list(((z - a) / 60000000.0)::FLOAT ORDER BY a, amount) AS durations, list(label ORDER BY a, amount) AS labels
    FROM clipped GROUP BY ALL
)
SELECT patient_id, block, list({{'input': agent, 'minutes': minutes, 'amounts': amounts, 'durations': durations, 'labels': labels}} ORDER BY agent) AS inputs
FROM listed GROUP BY ALL;
----
COPY (
    SELECT e.patient_id, 'glucose_insulin' AS model, strftime(DATE '1970-01-05' + (e.block * 14)::INTEGER, '%Y-%m-%d') AS episode, make_timestamp(e.start) AS start,
        20160 AS minutes, 5 AS step_minutes, offset_ AS utc_offset_minutes, [{{'signal': 'glucose', 'minutes': NULL::FLOAT[], 'values': values}}] AS signals, inputs,
        [{{'name': 'body_weight', 'value': coalesce(w.value, 70.0), 'assumed': w.value IS NULL}}] AS covariates, filled / 4032.0 AS wear_fraction,
        CASE WHEN filled < 288 THEN 'insufficient_data' ELSE 'ready' END AS status, hash(values, inputs) AS content_hash
    FROM episodes e JOIN readings r USING (patient_id, block) LEFT JOIN inputs i USING (patient_id, block)
        ASOF LEFT JOIN (SELECT patient_id, epoch_us(time) AS known, value FROM '{out}/observations/*/*.parquet' WHERE signal = 'body_weight') w
        ON e.patient_id = w.patient_id AND e.start >= w.known
) TO '{out}/timelines.parquet' (FORMAT parquet);
